"""Ways to put knowledge into a model: what a writer reads, what it leaves, and what that cost."""
