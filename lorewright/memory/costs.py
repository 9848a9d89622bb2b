"""What every memory of a folder took and recalls, beside what papers say of its way of writing.

A point is a memory: the share of the base's parameters that its state has, the seconds of its
write, its recall in words that were never trained, and what the base still knows. A claim is what a
paper states, with its source; nothing here says that both were measured on the same thing.

Reads the folder's cards; loads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from lorewright.errors import ConfigError, LorewrightError
from lorewright.memory.folder import Folder

GRADIENT = "gradient"
HEADLINE = "paraphrase"
MOST = 200
"""Memories that are read; of a folder with more the first by name."""
VALUE_BYTES = 4
"""Of a value of a state, which is float32."""


@dataclass(frozen=True)
class Claim:
    """What a paper states of a way of writing."""

    method: str
    """A key of `writers.methods.WRITERS`; empty for what is not built in."""
    called: str
    published: str
    """Year and month of the first version."""
    share: float | None
    """Of the model's parameters that it trains, as stated; None where none is."""
    says: str
    source: str


CLAIMS = (
    Claim(
        "bottleneck",
        "adapters",
        "2019-02",
        0.036,
        "within 0.4 % of full fine-tuning on GLUE with 3.6 % of the parameters a task",
        "arXiv 1902.00751",
    ),
    Claim(
        "prefix",
        "prefix tuning",
        "2021-01",
        0.001,
        "comparable to full fine-tuning on tables to text with 0.1 % of the parameters",
        "arXiv 2101.00190",
    ),
    Claim(
        "prompt",
        "prompt tuning",
        "2021-04",
        0.0001,
        "matches model tuning from billions of parameters on; below 0.01 % is trained",
        "arXiv 2104.08691",
    ),
    Claim(
        "gradient",
        "LoRA",
        "2021-06",
        0.0001,
        "10,000 times fewer trained parameters and a third of the memory of GPT-3 175B, as good",
        "arXiv 2106.09685",
    ),
    Claim(
        "ia3",
        "IA³",
        "2022-05",
        0.0001,
        "better than full fine-tuning of few-shot T0-3B with 0.01 % of the parameters",
        "arXiv 2205.05638",
    ),
    Claim(
        "",
        "QLoRA",
        "2023-05",
        None,
        "65B parameters on one GPU of 48 GB, as good as 16-bit fine-tuning",
        "arXiv 2305.14314",
    ),
    Claim(
        "",
        "DoRA",
        "2024-02",
        None,
        "above LoRA at the same rank on reasoning, at LoRA's cost of inference",
        "arXiv 2402.09353",
    ),
    Claim(
        "full",
        "full fine-tuning",
        "",
        1.0,
        "the reference of all of these; here cut to an adapter of a rank",
        "",
    ),
)
"""In the order of time; last what they are compared with."""


@dataclass(frozen=True)
class Point:
    """A memory as a point."""

    memory: str
    method: str
    kind: str
    """Of probe that `recall` is of."""
    rank: int | None
    n_values: int | None
    """Numbers that its state has."""
    share: float | None
    """Of the base's parameters."""
    seconds: float | None
    """Of training."""
    recall: Mapping[str, Any] | None
    base: Mapping[str, Any] | None
    """The same probes, put to the base alone."""
    retained: Mapping[str, Any] | None
    written: str
    """Day of the write."""
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Costs:
    """All points of a folder, best first, and the claims."""

    small: float
    """How much smallness counts, in [0, 1]."""
    n_base: int | None
    """Parameters of the base."""
    points: tuple[Point, ...]
    scores: tuple[float | None, ...]
    """By which they are sorted; None for what has no verdict."""
    n_more: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = zip(self.points, self.scores, strict=True)
        return {
            "small": self.small,
            "n_base": self.n_base,
            "n_more": self.n_more,
            "points": [point.to_json() | {"score": score} for point, score in rows],
            "claims": [asdict(claim) for claim in CLAIMS],
        }


def costs(folder: Folder, *, small: float = 0.0, n_base: int | None = None) -> Costs:
    """The memories of a folder as points, best first.

    `n_base` is the number of the base's parameters, of which shares are; None leaves them open. The
    order is by (1 - small) recall + small s, where s falls from 1 at the smallest state to 0 at
    the largest, linearly in the logarithm of its size. Raises ConfigError for a share outside
    [0, 1].
    """
    if not 0 <= small <= 1:
        raise ConfigError(f"small is {small}; give a share from 0 to 1.")
    entries = sorted(folder.entries().items())
    points = [_point(folder, name, entry, n_base) for name, entry in entries[:MOST]]
    score = _scores(points, small)
    known = [-math.inf if each is None else each for each in score]
    order = sorted(range(len(points)), key=lambda n: -known[n])
    ranked = tuple(points[n] for n in order)
    return Costs(small, n_base, ranked, tuple(score[n] for n in order), len(entries[MOST:]))


def parameters_of(folder: Folder) -> int | None:
    """Parameters of a folder's base, by its config.json; None where they cannot be counted."""
    from lorewright.models.sizes import sizes_of

    if folder.started:
        with suppress(LorewrightError):  # a base of no known family has points without a share
            return sizes_of(folder.index()["base"]["id"], ("all-linear",)).n_parameters
    return None


def _point(folder: Folder, name: str, entry: Mapping[str, Any], n_base: int | None) -> Point:
    identity = entry["adapter"]
    card = folder.card(identity) or entry.get("card", {})
    recall = card.get("report", {}).get("recall", {})
    kind = HEADLINE if HEADLINE in recall else next(iter(recall), "")
    n_bytes = sum(path.stat().st_size for path in folder.state_path(identity).glob("*.safetensors"))
    n_values = n_bytes // VALUE_BYTES or None
    rank = card.get("adapter", {}).get("lora", {}).get("rank")
    day = str(entry.get("run", ""))[:8]
    merged = str(card.get("merge", {}).get("method", "")) if entry.get("parents") else ""
    return Point(
        memory=name,
        method=f"merge by {merged}" if merged else str(card.get("method", GRADIENT)),
        kind=kind,
        rank=rank if isinstance(rank, int) else None,
        n_values=n_values,
        share=n_values / n_base if n_values and n_base else None,
        seconds=card.get("training", {}).get("seconds"),
        recall=recall.get(kind, {}).get("memory"),
        base=recall.get(kind, {}).get("base"),
        retained=recall.get("retained", {}).get("memory"),
        written=f"{day[:4]}-{day[4:6]}-{day[6:]}" if day.isdigit() and len(day) == 8 else "",
        source=str(entry.get("source", "")),
    )


def _scores(points: Sequence[Point], small: float) -> list[float | None]:
    sizes = [math.log(point.n_values) for point in points if point.n_values]
    low, high = (min(sizes), max(sizes)) if sizes else (0.0, 0.0)
    scores: list[float | None] = []
    for point in points:
        recall = point.recall.get("recall") if point.recall else None
        if recall is None or not point.n_values:
            scores.append(None)
            continue
        smallness = 1 - (math.log(point.n_values) - low) / (high - low) if high > low else 1.0
        scores.append((1 - small) * recall + small * smallness)
    return scores
