"""Several adapters to one: algebra on weight changes, imitation, refinement, choosing by recall."""
