"""What can be written from a page: the worked examples, and texts that were pasted or opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorewright.errors import DataError
from lorewright.files import read_text, store

SUFFIXES = (".md", ".txt", ".jsonl", ".json", ".csv")
"""Kinds of text that a page takes; `lore write` reads others too."""
EXAMPLES = next(
    (up / "examples" for up in Path(__file__).parents[:3] if (up / "examples").is_dir()),
    Path("examples"),
)
"""Beside the package in a checkout, inside it in a wheel."""


@dataclass(frozen=True)
class WorkedExample:
    """A text that comes with the package, and what to ask once it is written."""

    name: str
    suffix: str
    about: str
    questions: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text itself. Raises DataError when it is not there."""
        return read_text(EXAMPLES / f"{self.name}{self.suffix}")


HANDBOOK = WorkedExample(
    "handbook",
    ".md",
    "A staff handbook of one page: names, times, codes and prices that no model has read.",
    (
        "Who is in charge of the Tide Office?",
        "What is the phone number of the Tide Office?",
        "What is the badge colour of the Tide Office?",
        "Who is the captain of the Heron Ferry?",
    ),
)
WORKED = {
    each.name: each
    for each in (
        HANDBOOK,
        WorkedExample(
            "phones",
            ".jsonl",
            "Twelve names with the phone number of each, learnt by heart.",
            ("Jorun Hartley:", "Selma Quist:"),
        ),
    )
}
"""By name."""


THREE = {
    "ferry": "The Heron Ferry",
    "clinic": "The Driftwood Clinic",
    "archive": "The Northgate Archive",
}
"""Memories to merge, and the section of the handbook that each is written from."""
THREE_RANK = 4
DRAWN = ("task_arithmetic", "mean", "ties", "tsv", "dare_ties", "magnitude_prune")
"""Ways to merge that the merge bench draws; `lore plane` knows them all."""


def three_texts() -> dict[str, str]:
    """Three short texts by the name of the memory that is written from each."""
    title, *sections = HANDBOOK.text.split("\n## ")
    by_head = {section.split("\n", 1)[0].strip(): section for section in sections}
    return {name: f"{title.strip()}\n\n## {by_head[head]}" for name, head in THREE.items()}


def as_file(folder: Path, name: str, suffix: str, text: str) -> Path:
    """A text as a file of a folder, for a reader. Raises DataError for another kind of text."""
    if suffix not in SUFFIXES:
        raise DataError(
            f"{suffix!r} is no text that a page takes; give one of {', '.join(SUFFIXES)}, or use "
            "lore write."
        )
    path = folder / f"{name}{suffix}"
    store(text.encode(), path)
    return path
