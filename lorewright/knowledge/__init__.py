"""Documents and facts: reading, splitting, self-study, lessons, scoring of answers."""
