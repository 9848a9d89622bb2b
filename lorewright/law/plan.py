"""Plan: what is to be written and how much of it must come back, into a rank, before training.

    load, forecast, shape of the adapter  ->  rank, memories, bytes, minutes, predicted recall

Bodies of knowledge are harder or easier to write than their numbers say, at all ranks alike. So the
rank that is planned is the smallest that does where any does, as far as a chance of `ENOUGH` goes;
whether any does is said beside it. Where not even the largest rank reaches the wanted recall with
the chance `SURE`, the load is cut into several memories or, if it is small, more epochs are
advised. What is predicted is the share of answers reproduced exactly as trained. Recall in other
words than trained is not predicted: a write verifies it.

This room knows forecasts and the sizes of layers; it knows nothing of folders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.targets import resolve_targets
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example
from lorewright.law.forecast import Forecast, Load
from lorewright.law.law import Interval
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write

WANTED = 0.95
"""Share of the answers that must come back exactly, unless another is asked for."""
SURE = 0.8
"""Chance of that with which a plan counts as enough."""
ENOUGH = 0.6
"""Of the largest rank's chance; the planned rank has as much."""
CONFIDENCE = 0.9
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 512)
ENGINES: Mapping[str, tuple[int, ...]] = {"vllm": (8, 16, 32, 64, 128, 256, 320, 512)}
"""Ranks that a serving engine can be started for; an adapter runs under the next one above."""
WANTED_OF_WRITE, LEAST_WRITTEN = 0.99, 8
"""What a write plans for: rank 8 at least, since engines reserve its room for any smaller one."""
ENOUGH_TO_WRITE = 0.9
"""The same for a write, which is to succeed rather than to be small."""
FIXED_RANK = 8
"""Of a write whose base and recipe have no calibration."""
LEAST_PART = 50
"""Answers; smaller loads are not cut into several memories."""
MOST_MEMORIES = 64
NEAR = 0.03
"""Or it takes at most so much longer than the largest: more rank would hardly help."""
MOST_EPOCHS = 16
"""Times the budget: as far as more epochs are looked for."""
PACE_ROWS, PACE_EPOCHS = 32, 3
"""A pace is measured on so many examples and epochs."""


@dataclass(frozen=True)
class Shape:
    """The sizes of an adapter on a base and its targets."""

    n_values: int
    """Parameters at rank 1: rows and columns of all adapted layers."""
    n_tensors: int
    name_bytes: int
    """Of all the tensors' names together."""
    largest: int
    """A larger rank than this adds nothing to any layer."""

    def n_parameters(self, rank: int) -> int:
        """Of one adapter."""
        return rank * self.n_values

    def n_bytes(self, rank: int) -> int:
        """Of one adapter's safetensors file: float32, and a header of some 64 bytes a tensor."""
        return 4 * self.n_parameters(rank) + 64 * self.n_tensors + self.name_bytes


@dataclass(frozen=True)
class Option:
    """What one rank would come to, in as many memories as the plan has."""

    rank: int
    recall: Interval
    """Median and interval of the share that one run reproduces."""
    chance: float
    """Of the wanted recall."""
    n_bytes: int
    """Of all memories together."""


@dataclass(frozen=True)
class Plan:
    """What to write, and what is expected to come of it."""

    rank: int
    n_memories: int
    recall: Interval
    """Share of answers that one run reproduces exactly, with the interval in which it lies."""
    chance: float
    """Of the wanted recall."""
    wanted: float
    confidence: float
    epochs: int
    """The budget of every memory."""
    load: Load
    n_parameters: int
    """Of one memory."""
    n_bytes: int
    """Of all memories on disk."""
    options: tuple[Option, ...]
    engines: Mapping[str, int | None]
    """The rank that each engine must be started for; None: it takes none as large."""
    notes: tuple[str, ...]
    seconds: float | None = None
    """Training time of all memories as expected, at the pace measured; None: not measured."""
    most_seconds: float | None = None
    """The same if every epoch of the budget is used."""

    @property
    def reaches(self) -> bool:
        """Whether the wanted recall is likely enough."""
        return self.chance >= SURE

    def __str__(self) -> str:
        """One line: rank, memories, size, minutes, predicted recall."""
        many = "memory" if self.n_memories == 1 else "memories"
        time = "" if self.seconds is None else f", {_minutes(self.seconds)}"
        return (
            f"rank {self.rank}, {self.n_memories} {many}, {self.n_bytes / 1e6:.2f} MB{time}, "
            f"predicted recall {_interval(self.recall)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; intervals as value, low and high."""
        plain = asdict(self) | {"recall": self.recall._asdict(), "reaches": self.reaches}
        plain["engines"] = dict(self.engines)
        plain["load"] |= {"bits": self.load.bits}
        plain["options"] = [
            asdict(option) | {"recall": option.recall._asdict()} for option in self.options
        ]
        return plain


def make(
    load: Load,
    forecast: Forecast,
    shape: Shape,
    *,
    epochs: int,
    wanted: float = WANTED,
    ranks: Sequence[int] = RANKS,
    enough: float = ENOUGH,
) -> Plan:
    """Return the plan for a load.

    The rank is the smallest with `enough` of the largest one's chance, or where a larger one would
    hardly help. Raises ConfigError for a wanted recall that is no share, or ranks of which none
    fits the base.
    """
    if not 0 < wanted < 1:
        raise ConfigError(
            f"a recall of {wanted} was asked for; give a share between 0 and 1, such as {WANTED}."
        )
    fitting = sorted({rank for rank in ranks if 1 <= rank <= shape.largest})
    if not fitting:
        raise ConfigError(
            f"ranks {list(ranks)} were asked for; the adapted layers take 1 to {shape.largest}."
        )
    most = max(1, min(MOST_MEMORIES, load.n_answers // LEAST_PART))
    n_memories = next(
        (
            n
            for n in range(1, most + 1)
            if forecast.chance(load.part(n), fitting[-1], epochs, wanted) >= SURE
        ),
        1,
    )
    part = load.part(n_memories)
    options = tuple(
        _option(part, forecast, shape, rank, epochs, wanted, n_memories) for rank in fitting
    )
    if n_memories > 1:  # it was split so that some rank is sure
        chosen = next(option for option in options if option.chance >= SURE)
    else:
        chosen = _choose(options, part, forecast, epochs, wanted, enough)
    return Plan(
        chosen.rank,
        n_memories,
        chosen.recall,
        chosen.chance,
        wanted,
        CONFIDENCE,
        epochs,
        load,
        shape.n_parameters(chosen.rank),
        chosen.n_bytes,
        options,
        {name: engine_rank(chosen.rank, known) for name, known in ENGINES.items()},
        _notes(part, forecast, chosen, options, epochs, wanted, n_memories),
    )


def timed(plan: Plan, forecast: Forecast, seconds_per_example: float) -> Plan:
    """The plan with its training time, at so many seconds an example and epoch."""
    n_examples = plan.load.n_examples + plan.load.n_declined
    need = forecast.stop * forecast.needs(plan.load.part(plan.n_memories), plan.rank)
    each = seconds_per_example * n_examples
    return replace(
        plan, seconds=each * min(plan.epochs, math.ceil(need)), most_seconds=each * plan.epochs
    )


def shape_of(model: Model, lora: LoraConfig) -> Shape:
    """The sizes of an adapter with these targets. Raises as `resolve_targets`."""
    sites = resolve_targets(model.network, lora.targets, lora.layers).sites
    return Shape(
        sum(site.n_in + site.n_out for site in sites),
        2 * len(sites),
        2 * sum(len(f"base_model.model.{site.name}.lora_A.weight") for site in sites),
        max(min(site.n_in, site.n_out) for site in sites),
    )


def pace(model: Model, examples: Sequence[Example], config: WriteConfig) -> float:
    """Seconds that one example takes in one epoch, by a short write of some; the base is as before.

    Stacked or on another machine it differs.
    """
    step = max(1, len(examples) // PACE_ROWS)
    brief = replace(config, epochs=PACE_EPOCHS, objective=_cheap(config.objective))
    written = write(model, examples[::step], brief)
    first, last = written.epochs[0], written.epochs[-1]
    if last is first:
        return first.seconds / max(1, first.n_trained)
    n_trained = sum(epoch.n_trained for epoch in written.epochs[1:])
    return (last.seconds - first.seconds) / max(1, n_trained)


def engine_rank(rank: int, known: Sequence[int]) -> int | None:
    """The smallest rank of an engine under which an adapter of this one runs; None: there is none.

    >>> engine_rank(2, ENGINES["vllm"])
    8
    """
    return min((size for size in known if size >= rank), default=None)


def table(plan: Plan) -> list[tuple[str, ...]]:
    """The ranks that were weighed, as rows for a terminal, the header first."""
    head = ("rank", "predicted recall", f"chance of {plan.wanted:g}", "MB", "")
    return [
        head,
        *(
            (
                str(option.rank),
                _interval(option.recall),
                f"{option.chance:.2f}",
                f"{option.n_bytes / 1e6:.2f}",
                "planned" if option.rank == plan.rank else "",
            )
            for option in plan.options
        ),
    ]


def _option(
    part: Load,
    forecast: Forecast,
    shape: Shape,
    rank: int,
    epochs: int,
    wanted: float,
    n_memories: int,
) -> Option:
    return Option(
        rank,
        forecast.predict(part, rank, epochs, confidence=CONFIDENCE),
        forecast.chance(part, rank, epochs, wanted),
        n_memories * shape.n_bytes(rank),
    )


def _choose(
    options: Sequence[Option],
    load: Load,
    forecast: Forecast,
    epochs: int,
    wanted: float,
    enough: float,
) -> Option:
    """The smallest rank with enough of the largest one's chance, or that takes hardly longer."""
    largest = options[-1].rank
    least = forecast.log_chance(load, largest, epochs, wanted) + math.log(enough)
    soon = (1 + NEAR) * forecast.needs(load, largest)
    return next(
        option
        for option in options
        if forecast.log_chance(load, option.rank, epochs, wanted) >= least
        or forecast.needs(load, option.rank) <= soon
    )


def _notes(
    part: Load,
    forecast: Forecast,
    chosen: Option,
    options: Sequence[Option],
    epochs: int,
    wanted: float,
    n_memories: int,
) -> tuple[str, ...]:
    """What the numbers do not say, in sentences."""
    notes = []
    if n_memories > 1:
        notes.append(
            f"One memory does not hold it: split into {n_memories} of about {part.n_answers} "
            "answers each."
        )
    sure = next((option for option in options if option.chance >= SURE), None)
    if chosen.chance < SURE and sure is not None:
        notes.append(
            f"Rank {chosen.rank} reaches {wanted:g} with a chance of {chosen.chance:.2f}; to be "
            f"surer take rank {sure.rank} (chance {sure.chance:.2f})."
        )
    elif chosen.chance < SURE:
        more = _enough(part, forecast, chosen.rank, epochs, wanted)
        advice = f"{more} epochs would" if more else "neither would many more epochs"
        notes.append(f"No rank reaches {wanted:g} surely in {epochs} epochs; {advice}.")
    outside = forecast.extrapolates(part, chosen.rank)
    if outside:
        said = ", ".join(outside)
        notes.append(f"Beyond what was calibrated, so less sure than it says: {said}.")
    notes.append("Predicted is recall as trained; recall in other words is verified by the write.")
    return tuple(notes)


def _enough(part: Load, forecast: Forecast, rank: int, epochs: int, wanted: float) -> int | None:
    """The smallest budget of epochs that is likely to do; None: not MOST_EPOCHS times as many."""
    low, high = epochs, MOST_EPOCHS * epochs
    if forecast.chance(part, rank, high, wanted) < SURE:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if forecast.chance(part, rank, middle, wanted) < SURE:
            low = middle
        else:
            high = middle
    return high


def _cheap(objective: str) -> str:
    """An objective that takes the same time a step and needs no teacher's word first."""
    return "sft" if objective == "distill" else objective


def _interval(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
