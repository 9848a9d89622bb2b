"""A folder of memories and its verbs."""
