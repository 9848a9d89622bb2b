"""What tells the weights of one base from those of another, without reading gigabytes."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

SAMPLE = 65_536
"""Values hashed of each tensor, evenly spread."""


def fingerprint(network: nn.Module) -> str:
    """Sha256 over names, shapes, dtypes and an even sample of every tensor's values.

    A quantised layer's tensors are its packed weights and their scales.
    """
    hasher = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // SAMPLE)].contiguous().cpu()
        hasher.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        hasher.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    return hasher.hexdigest()
