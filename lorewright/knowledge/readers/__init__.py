"""Files into knowledge, a file a family of formats."""
