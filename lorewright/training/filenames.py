"""Names of the files in a run's folder that training writes and others read; loads nothing."""

from __future__ import annotations

CHECKPOINT_FILE = "checkpoint.safetensors"
OPEN_FILE = "stopped.safetensors"
"""The checkpoint of a write that was stopped, from which it can go on; it ends in the same bytes as
one that was not."""
METRICS_FILE = "metrics.jsonl"
"""The epochs that are over, one a line."""
PARTS_FILE = "part.json"
"""What is known of epochs that are not over."""
STOP_FILE = "stop"
"""A file of this name in a run has its write end after the epoch, with what it has learnt."""
