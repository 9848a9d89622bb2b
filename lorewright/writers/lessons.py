"""What writers that train on a lesson have in common: what a teacher reads, and the account of it.

Knows the material and training's records; knows nothing of what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lorewright.knowledge.lesson import grounds
from lorewright.models.model import Model
from lorewright.training.config import Epoch, WriteConfig
from lorewright.writers.writer import Cost, Material


def contexts_of(material: Material, config: WriteConfig) -> list[str]:
    """What the objective's teacher reads before each example, those rehearsed last; else nothing.

    What is rehearsed has the plain base as its teacher.
    """
    if config.build_objective().teacher is None:
        return []
    contexts = grounds(material.examples, material.knowledge)
    return [*contexts, *("" for _ in material.rehearsal)]


def cost_of(
    model: Model,
    material: Material,
    epochs: Sequence[Epoch],
    reason: str,
    engine: str,
    about: Mapping[str, Any] | None = None,
) -> Cost:
    """The account of a training on the material's examples."""
    examples, last = material.examples, epochs[-1]
    n_tokens = sum(len(model.render(e.prompt, e.completion)) for e in examples)
    return Cost(
        *(reason, last.seconds, engine, len(examples), len(epochs), n_tokens),
        last=asdict(last),
        about=about or {},
    )
