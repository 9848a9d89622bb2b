"""What several test modules share: stacks."""

from __future__ import annotations

from dataclasses import replace

from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.data import Example
from lorewright.training.config import Diverged, Job, Written
from support.writes import BRIEF, EXAMPLES

OTHERS = [
    Example(f"Which town is {who} in?", town)
    for who, town in (
        ("Ann", "Oslo"),
        ("Bo", "Rome"),
        ("Cy", "Bath"),
        ("Di", "Lodz"),
        ("Ed", "Bonn"),
    )
]


UPPER = LoraConfig(rank=4, layers=(1,))


JOBS = (
    Job(EXAMPLES, replace(BRIEF, batch_size=2)),
    Job(OTHERS, replace(BRIEF, lora=LoraConfig(rank=2, seed=3), lr=5e-3, batch_size=3, seed=1)),
    Job(EXAMPLES, replace(BRIEF, lora=UPPER, objective="memft_threshold", epochs=4, clip=0.1)),
)


def written(found: Written | Diverged) -> Written:
    assert isinstance(found, Written), found
    return found


def far(a: Written, b: Written) -> float:
    """Largest difference between two adapters' weights."""
    assert a.adapter.tensors.keys() == b.adapter.tensors.keys()
    return max(
        float((tensor - b.adapter.tensors[key]).abs().max())
        for key, tensor in a.adapter.tensors.items()
    )
