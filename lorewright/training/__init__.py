"""Training adapters: the loop, objectives, optimisers, schedules, stopping, checkpoints."""
