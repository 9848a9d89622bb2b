"""How many writes share a pass: as many as the memory that is free holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import psutil
import torch

from lorewright.models.model import Model
from lorewright.models.sizes import n_kept_of
from lorewright.training.config import Job

SHARE_TAKEN = 0.25
"""Of the free memory, for what tokens leave in the layers: they leave more elsewhere, and others
run beside a write."""


def n_at_once(model: Model, jobs: Sequence[Job]) -> int:
    """How many of these writes may be one stack: at least one, at most all of them.

    Every write keeps what the tokens of its own step leave for the backward pass; the base is there
    once.
    """
    if len(jobs) < 2:
        return len(jobs)
    n_rows = max(job.config.batch_size for job in jobs)
    each = n_rows * n_kept_of(model.network) * torch.float32.itemsize
    free = SHARE_TAKEN * free_bytes(model.device)
    if each * model.context * len(jobs) <= free:
        return len(jobs)
    texts = {(e.prompt, e.completion) for job in jobs for e in job.examples}
    longest = max(len(model.render(*text)) for text in texts)
    return max(1, min(len(jobs), int(free / (each * longest))))


def free_bytes(device: torch.device) -> float:
    """Free memory of a device; without end where nothing says how much it is."""
    if device.type == "cpu":
        return float(psutil.virtual_memory().available)
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else math.inf
