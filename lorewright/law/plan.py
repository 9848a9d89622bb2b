"""Plan: what is to be written and how much of it must be recalled, turned into a rank beforehand.

    load, forecast, shape of the adapter  ->  rank, memories, bytes, minutes, predicted recall

Bodies of facts are harder or easier than their numbers say, at all ranks alike. So the planned rank
is the smallest with the share `ENOUGH` of the largest rank's chance of the wanted recall. Where
even the largest rank's chance is below `SURE`, a large load is split into several memories and for
a small one more epochs are advised. Predicted is the share of answers reproduced exactly as
trained; recall in other words is not predicted but verified by a write.

Knows forecasts and the sizes of layers; nothing of folders.
"""

from __future__ import annotations

import math
from bisect import bisect_left
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
"""Share of the answers that must be reproduced exactly, by default."""
SURE = 0.8
"""A plan with this chance of the wanted recall is likely enough."""
ENOUGH = 0.5
"""Of the largest rank's chance; the planned rank has at least as much."""
NEAR = 0.03
"""Or it needs at most so much longer than the largest: more rank would hardly help."""
CONFIDENCE = 0.9
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 512)
ENGINES: Mapping[str, tuple[int, ...]] = {"vllm": (8, 16, 32, 64, 128, 256, 320, 512)}
"""Ranks that a serving engine can be started for; an adapter runs under the next one above."""
WANTED_OF_WRITE, LEAST_WRITTEN = 0.99, 8
"""What a write plans for: rank 8 at least, since engines reserve its space for any smaller one."""
ENOUGH_TO_WRITE = 0.9
"""ENOUGH for a write, which is to succeed rather than to be small."""
FIXED_RANK = 8
"""Of a write whose base and recipe have no calibration."""
LEAST_PART = 50
"""Answers; smaller loads are not split into several memories."""
MOST_MEMORIES = 64
MOST_EPOCHS = 16
"""Times the budget: the largest one that is advised."""
PACE_ROWS, PACE_EPOCHS = 32, 3
"""Examples and epochs on which the time of an epoch is measured."""


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

    def n_bytes(self, rank: int) -> int:
        """Of one adapter's safetensors file: float32, and a header of some 64 bytes a tensor."""
        return 4 * rank * self.n_values + 64 * self.n_tensors + self.name_bytes


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
    """What to write, and what is expected of it."""

    rank: int
    n_memories: int
    recall: Interval
    """Median and interval of the share of answers that one run reproduces exactly."""
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
    """Expected training time of all memories at the measured pace; None: not measured."""
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
    writable: float = 1.0,
) -> Plan:
    """Plan a load: the smallest rank with `enough` of the largest rank's chance.

    `writable` is the share of what is to be recalled that the base can write at all: predicted
    recall is that of the load times it, and no rank has a chance of more.

    Raises ConfigError for a wanted recall that is no share, or ranks of which none fits the base.
    """
    if not 0 < wanted < 1:
        raise ConfigError(
            f"the wanted recall is {wanted}; give a share between 0 and 1, such as {WANTED}."
        )
    fitting = sorted({rank for rank in ranks if 1 <= rank <= shape.largest})
    if not fitting:
        raise ConfigError(
            f"none of the ranks {list(ranks)} fits; the adapted layers take 1 to {shape.largest}."
        )
    largest = fitting[-1]
    splits = range(1, max(1, min(MOST_MEMORIES, load.n_answers // LEAST_PART)) + 1)
    likely = (n for n in splits if forecast.chance(load.part(n), largest, epochs, wanted) >= SURE)
    n_memories = next(likely, 1)
    part = load.part(n_memories)
    options = tuple(
        Option(
            rank,
            _shrunk(forecast.predict(part, rank, epochs, confidence=CONFIDENCE), writable),
            forecast.chance(part, rank, epochs, wanted / writable) if wanted < writable else 0.0,
            n_memories * shape.n_bytes(rank),
        )
        for rank in fitting
    )
    if n_memories > 1:  # it was split so that some rank is likely enough
        chosen = next(o for o in options if forecast.chance(part, o.rank, epochs, wanted) >= SURE)
    else:
        # Logarithms order ranks even where all are hopeless.
        least = forecast.log_chance(part, largest, epochs, wanted) + math.log(enough)
        longest = (1 + NEAR) * forecast.needs(part, largest)
        chosen = next(
            option
            for option in options
            if forecast.log_chance(part, option.rank, epochs, wanted) >= least
            or forecast.needs(part, option.rank) <= longest
        )
    plan = Plan(
        chosen.rank,
        n_memories,
        chosen.recall,
        chosen.chance,
        wanted,
        CONFIDENCE,
        epochs,
        load,
        chosen.rank * shape.n_values,
        chosen.n_bytes,
        options,
        {name: engine_rank(chosen.rank, sizes) for name, sizes in ENGINES.items()},
        (),
    )
    return replace(plan, notes=_notes(plan, part, forecast, writable))


def _shrunk(recall: Interval, share: float) -> Interval:
    return Interval(recall.value * share, recall.low * share, recall.high * share)


def timed(plan: Plan, forecast: Forecast, seconds_per_example: float) -> Plan:
    """The plan with its training time, at so many seconds an example and epoch."""
    n_examples = plan.load.n_examples + plan.load.n_declined
    need = forecast.stop * forecast.needs(plan.load.part(plan.n_memories), plan.rank)
    epoch = seconds_per_example * n_examples
    return replace(
        plan, seconds=epoch * min(plan.epochs, math.ceil(need)), most_seconds=epoch * plan.epochs
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
    """Seconds of one example in one epoch, measured by a short write; the base stays as it was.

    Stacked or on another machine it differs.
    """
    step = max(1, len(examples) // PACE_ROWS)
    # Distillation takes the same time a step, but would run the teacher first.
    objective = "sft" if config.objective == "distill" else config.objective
    written = write(
        model, examples[::step], replace(config, epochs=PACE_EPOCHS, objective=objective)
    )
    first, last = written.epochs[0], written.epochs[-1]
    if last is first:
        return first.seconds / max(1, first.n_trained)
    n_trained = sum(epoch.n_trained for epoch in written.epochs[1:])
    return (last.seconds - first.seconds) / max(1, n_trained)


def engine_rank(rank: int, sizes: Sequence[int]) -> int | None:
    """The smallest of an engine's ranks under which an adapter runs; None: there is none.

    >>> engine_rank(2, ENGINES["vllm"])
    8
    """
    return min((size for size in sizes if size >= rank), default=None)


def table(plan: Plan) -> list[tuple[str, ...]]:
    """The ranks that were compared, as rows for a terminal, the header first."""
    rows: list[tuple[str, ...]] = [
        ("rank", "predicted recall", f"chance of {plan.wanted:g}", "MB", "")
    ]
    for option in plan.options:
        chance, size = f"{option.chance:.2f}", f"{option.n_bytes / 1e6:.2f}"
        mark = "planned" if option.rank == plan.rank else ""
        rows.append((str(option.rank), _interval(option.recall), chance, size, mark))
    return rows


def _notes(plan: Plan, part: Load, forecast: Forecast, writable: float) -> tuple[str, ...]:
    """What the numbers do not say, in sentences."""
    notes = []
    if writable < 1:
        notes.append(
            f"Of what is to be recalled this base can write {writable:.0%}; predicted recall is of "
            "all of it, and neither rank nor epochs change the rest."
        )
    if plan.n_memories > 1:
        notes.append(
            f"One memory does not hold it: split into {plan.n_memories} of about "
            f"{part.n_answers} answers each."
        )
    likely = next((option for option in plan.options if option.chance >= SURE), None)
    if writable <= plan.wanted:
        pass  # said above: no rank and no budget reaches it
    elif not plan.reaches and likely is not None:
        notes.append(
            f"Rank {plan.rank} reaches {plan.wanted:g} with a chance of {plan.chance:.2f}; to be "
            f"surer take rank {likely.rank} (chance {likely.chance:.2f})."
        )
    elif not plan.reaches:
        more = _enough_epochs(plan, part, forecast)
        advice = f"{more} epochs would" if more else "neither would many more epochs"
        notes.append(f"No rank reaches {plan.wanted:g} surely in {plan.epochs} epochs; {advice}.")
    outside = forecast.extrapolates(part, plan.rank)
    if outside:
        notes.append(
            f"Beyond what was calibrated, so less sure than it says: {', '.join(outside)}."
        )
    notes.append("Predicted is recall as trained; recall in other words is verified by the write.")
    return tuple(notes)


def _enough_epochs(plan: Plan, part: Load, forecast: Forecast) -> int | None:
    """The smallest budget of epochs that is likely enough; None: not MOST_EPOCHS times as many."""

    def likely(epochs: int) -> bool:
        return forecast.chance(part, plan.rank, epochs, plan.wanted) >= SURE

    budgets = range(plan.epochs, MOST_EPOCHS * plan.epochs + 1)
    first = bisect_left(budgets, True, key=likely)
    return budgets[first] if first < len(budgets) else None


def _interval(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
