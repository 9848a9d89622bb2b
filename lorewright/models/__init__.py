"""Base models: loading, chat templates, scoring, generation, export; backends of a step."""
