"""Failures made on purpose, so that one sees how they come about and are diagnosed.

    rank      rank 1 in one module of one layer: less capacity than what is written takes
    layers    queries and keys alone: capacity enough, in layers that do not learn it
    wording   one set of question forms: the form becomes part of the key

All write the same page of the handbook as a sound write does, and differ from it in that alone; the
page ends in the diagnosis that names it, and in the command that mends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Document, Knowledge
from lorewright.knowledge.lesson import LessonConfig
from lorewright.training.config import WriteConfig
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.opened import OpenFolder
    from lorewright.memory.write import Outcome

SOUND = "sound"
"""The write that the others are compared with."""
PAGE = """# Marrow Bay

## The Tide Office

The Tide Office is led by Maren Oskold. The doors of the Tide Office open at 7:30. Call the Tide \
Office on 0417 2286. The visitor code of the Tide Office is TD-5093. At the Tide Office, the badge \
colour is teal. For the Tide Office, the parking fee is 14 crowns.

## The Pelican Library

The Pelican Library belongs to Josun Farrel. The Pelican Library is based in Upper Skelby. The \
Pelican Library closes at 19:45. For the Pelican Library, the return deadline is 9 March. The \
archive room of the Pelican Library is C4.18. The late fee for the Pelican Library is 6 euros.
"""


@dataclass(frozen=True)
class Failure:
    """A way to write the page, and what a diagnosis finds."""

    about: str
    """What is done, in a sentence."""
    finds: str
    """A key of `diagnose.CHECKS`; empty where nothing is wrong."""
    lora: LoraConfig
    epochs: int = 30
    lesson: LessonConfig = field(default_factory=LessonConfig)

    @property
    def options(self) -> dict[str, Any]:
        """What differs from a usual write, in the words of the command line."""
        plain = {"rank": self.lora.rank, "target": ",".join(self.lora.targets)}
        layers = {"layers": list(self.lora.layers)} if self.lora.layers else {}
        forms = {"train_sets": list(self.lesson.train_sets)}
        usual = {"train_sets": list(LessonConfig().train_sets), "target": "all-linear"}
        every = plain | layers | forms | {"epochs": self.epochs}
        return {key: value for key, value in every.items() if usual.get(key) != value}


FAILURES: Mapping[str, Failure] = {
    SOUND: Failure(
        "All linear layers at rank 4, in several wordings: it recalls.", "", LoraConfig(4)
    ),
    "rank": Failure(
        "Rank 1 in the values of one layer: a page takes more than it holds.",
        "too_small",
        LoraConfig(1, targets=("v_proj",), layers=(2,)),
    ),
    "layers": Failure(
        "Rank 8 in queries and keys alone: capacity enough, in the wrong layers.",
        "wrong_layers",
        LoraConfig(8, targets=("q_proj", "k_proj")),
    ),
    "wording": Failure(
        "Each fact in one form of question: that form becomes part of the key.",
        "one_form",
        LoraConfig(4),
        lesson=LessonConfig(train_sets=(2,)),
    ),
}
"""By name; the first is none."""


def name_of(failure: str) -> str:
    """The memory that a failure is written as."""
    return failure if failure == SOUND else f"failure-{failure}"


def fail(memory: OpenFolder, failure: str, *, watch: Watch | None = None) -> Outcome:
    """Write the page so that it fails in this way, as a memory of the folder; made again, replaced.

    `SOUND` is the write that they are compared with. Raises ConfigError for an unknown one.
    """
    from lorewright.memory.write import write
    from lorewright.training.rates import suggested_lr

    if failure not in FAILURES:
        raise ConfigError(f"there is no failure {failure!r}; take one of {', '.join(FAILURES)}.")
    chosen = FAILURES[failure]
    config = WriteConfig(lora=chosen.lora, lr=suggested_lr(memory.model), epochs=chosen.epochs)
    return write(
        memory,
        Knowledge((Document("marrow-bay", PAGE),)),
        name=name_of(failure),
        overwrite=True,
        config=config,
        lesson=chosen.lesson,
        watch=watch,
    )
