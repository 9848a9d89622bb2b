"""Which way of merging to take.

What is chosen is chosen on trained questions: of every answer that was trained in several forms one
form is held back, the methods that look at examples are fitted without it, and the one that serves
the worse-off source best wins; then it is fitted on all. Probes of the verdict have no part in it.
Inputs for RegMean are computed from the stored lessons when they are needed: one pass over them,
where storing Gram matrices would take many times the space of the adapters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorewright.adapters.adapter import Adapter
from lorewright.errors import ConfigError, LorewrightError
from lorewright.files import digest
from lorewright.knowledge.data import Example
from lorewright.knowledge.scoring import normalise
from lorewright.merging.methods import METHODS, Evidence, Options
from lorewright.models.model import Model
from lorewright.recall.statistics import Proportion, wilson
from lorewright.recall.traces import trace
from lorewright.training.watch import Watch

AUTO = "auto"
N_HELD = 200
"""At most so many held-back questions of each source decide between methods."""
NARROWER = 0.5
"""Share of the rank at which the best method is tried once more."""

Grid = Sequence[tuple[str, Options]]
GRID: Grid = (
    ("cat", {}),
    ("svd", {}),
    ("mean", {}),
    ("task_arithmetic", {"scaling": 0.7}),
    ("task_arithmetic", {"scaling": 0.85}),
    ("tsv", {}),
    ("ties", {"density": 0.5}),
    ("ties", {"density": 0.2}),
    ("dare", {"density": 0.8}),
    ("dare", {"density": 0.5}),
    ("dare_ties", {"density": 0.8}),
    ("magnitude_prune", {"density": 0.5}),
    ("magnitude_prune", {"density": 0.2}),
    ("regmean", {"ridge": 1e-2}),
    ("regmean", {"ridge": 1e-3}),
    ("imitate", {"ridge": 1e-3}),
    ("refine", {}),
)
"""What `auto` tries, simpler first: every method at least once but `rewrite`, which starts anew."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One way of merging, and how many of the held-back questions it still answers."""

    method: str
    options: Options
    rank: int
    held: tuple[Proportion, ...]
    """Per source: held-back trained questions whose every answer token is the likeliest."""
    sure: float
    """Mean over them of the least probability of any token; decides between equals."""
    seconds: float
    adapter: Adapter | None
    why_not: str = ""
    """Why it was refused; then there is no adapter."""

    @property
    def merit(self) -> tuple[float, float, int, float]:
        """What decides: the worse-off source, the mean over sources, the rank, how sure.

        A lower rank must retain more to be chosen: where held-back questions cannot distinguish
        the ranks, other questions can.
        """
        if self.adapter is None and self.why_not:
            return -1.0, -1.0, 0, 0.0
        means = [share.mean for share in self.held if share.mean is not None]
        return min(means), sum(means) / len(means), self.rank, self.sure

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        held = [share.to_json() for share in self.held]
        plain = {key: vars(self)[key] for key in ("method", "rank", "sure", "seconds", "why_not")}
        return {**plain, "options": dict(self.options), "held": held}


def merged_by(
    method: str, adapters: Sequence[Adapter], evidence: Evidence, grid: Grid = GRID
) -> Adapter:
    """One adapter by one method, or by the one of a grid that `auto` takes; raises alike."""
    if method == AUTO:
        best = best_of(search(adapters, evidence, grid))
        method = best.method
        evidence = replace(evidence, options=best.options, rank=best.rank)
    return METHODS[method](adapters, evidence)


def best_of(trials: Iterable[Trial]) -> Trial:
    """The trial with the most merit. Raises ConfigError when every way was refused."""
    best = max(trials, key=lambda trial: trial.merit)
    if best.adapter is None and best.why_not:
        raise ConfigError(f"every way of merging was refused, the last because {best.why_not}")
    return best


def search(adapters: Sequence[Adapter], evidence: Evidence, grid: Grid = GRID) -> Iterator[Trial]:
    """Try ways of merging on a part of the examples, and ask for the part that was held back.

    Without a given rank the sum of the ranks, and the best once more at half of it. A way that is
    refused, as training is with weights, is a trial that says why. Trials come with their adapters
    as fitted without the held part. Raises ConfigError when there is no trained question.
    """
    cut = [held_back(examples) for examples in evidence.examples]
    fitted = replace(evidence, examples=[rest for rest, _ in cut])
    held = [rows for _, rows in cut]
    if not any(held):
        raise ConfigError(
            "auto chooses by trained questions, and none of these memories has any; name a method."
        )
    best: Trial | None = None
    for method, options in grid:
        trial = _tried(adapters, replace(fitted, options=options), held, method)
        if best is None or trial.merit > best.merit:
            best = trial
        yield trial
    narrow = int(NARROWER * sum(each.config.rank for each in adapters))
    if evidence.rank is None and best is not None and best.adapter is not None and narrow > 0:
        method = "svd" if best.method == "cat" else best.method
        narrower = replace(fitted, options=best.options, rank=narrow)
        yield _tried(adapters, narrower, held, method)


def held_back(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Examples to fit, and those to ask: one form of every answer that was trained in several.

    Where most answers were trained in one form only, all are fitted, and held back too. At most
    N_HELD are, whatever their number; never those that are declined or have no prompt.
    """
    questions = [row for row in examples if row.prompt and row.kind != "unknown"]
    forms: dict[str, list[Example]] = {}
    for row in questions:
        forms.setdefault(normalise(row.completion), []).append(row)
    several = [rows for rows in forms.values() if len(rows) > 1]
    if 2 * len(several) < len(forms) or not forms:
        return list(examples), _some(questions or examples)
    held = [min(rows, key=lambda row: digest(row.prompt)) for rows in several]
    out = set(held)
    return [row for row in examples if row not in out], _some(held)


def _some(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: digest([row.completion, row.prompt]))[:N_HELD]


def _tried(
    adapters: Sequence[Adapter],
    evidence: Evidence,
    held: Sequence[Sequence[Example]],
    method: str,
) -> Trial:
    """Merge one way and ask for what was held back."""
    evidence.watch.step(f"trying {spelt(method, evidence.options)}")
    began = time.monotonic()
    # its steps would hide which one is being tried
    quiet = replace(evidence, watch=Watch(advance=evidence.watch.advance))
    try:
        adapter: Adapter | None = METHODS[method](adapters, quiet)
        assert adapter is not None
        rank, why_not = adapter.config.rank, ""
        shares, sure = retained(evidence.model, adapter, held, evidence.watch)
    except LorewrightError as error:
        rank = evidence.rank or sum(each.config.rank for each in adapters)
        adapter, shares, sure, why_not = None, (), 0.0, str(error)
    seconds = time.monotonic() - began
    return Trial(method, evidence.options, rank, shares, sure, seconds, adapter, why_not)


def retained(
    model: Model,
    adapter: Adapter,
    held: Sequence[Sequence[Example]],
    watch: Watch | None = None,
) -> tuple[tuple[Proportion, ...], float]:
    """Per source the share of questions that decoding would answer exactly; how sure, on average.

    By teacher-forced traces: greedy decoding gives a completion exactly when every token of it is
    the likeliest after the true ones before it.
    """
    shares: list[Proportion] = []
    least: list[float] = []
    with model.using(adapter):
        for rows in held:
            rendered = [model.render(row.prompt, row.completion) for row in rows]
            traces = trace(model, rendered, progress=(watch or Watch()).of("asking what is left"))
            shares.append(wilson(sum(each.exact for each in traces), len(traces)))
            least += [min(each.p) for each in traces]
    return tuple(shares), sum(least) / max(1, len(least))


def spelt(method: str, options: Options) -> str:
    """A method with its options, as people write it."""
    return " ".join([method, *(f"{key} {value:g}" for key, value in options.items())])
