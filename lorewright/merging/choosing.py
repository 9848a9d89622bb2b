"""Ways of merging, and which of them to take.

What is chosen is chosen on trained questions: of every answer that was trained in several forms one
form is held back, the methods that go by examples are fitted without it, and the one that serves
the worse-off source best wins; then it is fitted on all. Probes of the verdict have no part in it.
Inputs for RegMean are computed from the stored lessons when they are needed: one pass over them,
where keeping Gram matrices would take many times the room of the adapters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import HALVES, Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, LorewrightError
from lorewright.files import digest
from lorewright.knowledge.data import Example
from lorewright.knowledge.scoring import normalise
from lorewright.merging.algebra import METHODS
from lorewright.merging.algebra import merge as combine
from lorewright.merging.imitate import Source, grams, imitate
from lorewright.models.model import Model
from lorewright.recall.statistics import Proportion, wilson
from lorewright.recall.traces import trace
from lorewright.training import loop as training
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

AUTO, IMITATE, REFINE, REWRITE = "auto", "imitate", "refine", "rewrite"
NAMES = (AUTO, *METHODS, IMITATE, REFINE, REWRITE)
BY_EXAMPLES = ("regmean", IMITATE, REFINE)
"""Methods that go by what the sources were trained on."""
TRAINING = (REFINE, REWRITE)
"""Methods that train on the examples of all, and know no weights."""
N_HELD = 200
"""At most so many held-back questions of each source decide between methods."""
REFINED = 6
"""Passes over the examples of all sources, at most, after they were imitated."""
TRUNCATED = 0.5
"""Share of the rank at which the best method is tried once more."""
KEPT = 0.995
"""Share of a merged weight change below which it is said that the rank cuts it."""

Options = Mapping[str, Any]
GRID: tuple[tuple[str, Options], ...] = (
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
    (IMITATE, {"ridge": 1e-3}),
    (REFINE, {}),
)
"""What `auto` tries, simpler first: every method at least once but `rewrite`, which starts anew."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One way of merging, and how much of the held-back questions it kept."""

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

        A lower rank must keep more to be taken: where held-back questions cannot tell the ranks
        apart, other questions can.
        """
        if self.adapter is None and self.why_not:
            return -1.0, -1.0, 0, 0.0
        means = [share.mean for share in self.held if share.mean is not None]
        return min(means), sum(means) / len(means), self.rank, self.sure

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        held = [{"n": p.n, "recall": p.mean, "low": p.low, "high": p.high} for p in self.held]
        plain = {key: vars(self)[key] for key in ("method", "rank", "sure", "seconds", "why_not")}
        return {**plain, "options": dict(self.options), "held": held}


def make(
    model: Model,
    sources: Sequence[Source],
    method: str,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    options: Options | None = None,
    watch: Watch | None = None,
) -> tuple[Adapter, tuple[str, ...]]:
    """One adapter by one method, and what its making left to say; raises as the method does."""
    own, options, watch = [source.adapter for source in sources], options or {}, watch or Watch()
    if method == IMITATE:
        _check_options(options, ("ridge", "floor", "damping"), IMITATE)
        copy = imitate(model, sources, weights, rank, progress=watch.step, **options)
        return copy.adapter, copy.notes
    if method in TRAINING:
        notes = (f"{method} trains on the sources' examples.",)
        trained = _refined if method == REFINE else _rewritten
        return trained(model, sources, rank, options, watch), notes
    more = {"grams": [grams(model, source) for source in sources]} if method == "regmean" else {}
    found = combine(own, weights, method, rank, **options, **more)
    cut = (
        f"rank {found.adapter.config.rank} keeps {found.kept:.0%} of the merged weight change in "
        "the layer where it keeps least.",
    )
    return found.adapter, found.notes + (cut if found.kept < KEPT else ())


def made_by(
    model: Model,
    sources: Sequence[Source],
    method: str,
    watch: Watch | None = None,
    grid: Sequence[tuple[str, Options]] | None = None,
) -> Adapter:
    """One adapter of all by one method, or by the one of a grid that `auto` takes; raises alike."""
    if method != AUTO:
        return make(model, sources, method, watch=watch)[0]
    trials = search(model, sources, watch=watch, grid=grid or GRID)
    best = max(trials, key=lambda trial: trial.merit)
    return make(model, sources, best.method, None, best.rank, best.options, watch)[0]


def _check_options(options: Options, known: Sequence[str], method: str) -> None:
    if strange := sorted(options.keys() - {*known}):
        raise ConfigError(f"{method} takes options {list(known)}; unknown: {strange}.")


def _refined(
    model: Model, sources: Sequence[Source], rank: int | None, options: Options, watch: Watch
) -> Adapter:
    """The sources imitated, then trained on what they were trained on until all is recalled."""
    _check_options(options, ("lr", "epochs", "batch_size", "margin", "seed"), REFINE)
    given = {"lr": suggested_lr(model), "epochs": REFINED, **options}
    config = WriteConfig(**given)  # refused before anything is imitated
    copy = imitate(model, sources, None, rank, progress=watch.step).adapter
    # At the scale that fresh adapters have, so that the rate that suits them suits it.
    lora = replace(copy.config, alpha=None)
    more = copy.config.scale / lora.scale
    tensors = {k: t * more if k.endswith(HALVES[1]) else t for k, t in copy.tensors.items()}
    copy = replace(copy, config=lora, tensors=tensors)
    return _trained(model, sources, REFINE, replace(config, lora=lora), copy, watch)


def _rewritten(
    model: Model, sources: Sequence[Source], rank: int | None, options: Options, watch: Watch
) -> Adapter:
    """A new adapter trained on what all sources were trained on."""
    _check_options(options, ("lr", "epochs", "batch_size", "margin", "seed"), REWRITE)
    own = [source.adapter.config for source in sources]
    wide = LoraConfig(rank or sum(each.rank for each in own), None, own[0].targets, own[0].layers)
    config = WriteConfig(**{"lora": wide, "lr": suggested_lr(model), **options})
    return _trained(model, sources, REWRITE, config, None, watch)


def _trained(
    model: Model,
    sources: Sequence[Source],
    method: str,
    config: WriteConfig,
    start: Adapter | None,
    watch: Watch,
) -> Adapter:
    rows = list(dict.fromkeys(row for source in sources for row in source.examples))
    written = training.write(model, rows, config, start=start, on_epoch=watch.epoch)
    record = {"method": method, "rank": config.lora.rank, "reason": written.reason}
    record |= {"epochs": len(written.epochs)}
    record |= {"sources": [adapters.content_id(source.adapter) for source in sources]}
    return replace(written.adapter, card={"merge": record})


# -- which to take -------------------------------------------------------------------------------


def search(
    model: Model,
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    watch: Watch | None = None,
    grid: Sequence[tuple[str, Options]] = GRID,
) -> Iterator[Trial]:
    """Try ways of merging on a part of the examples, and ask for the part that was held back.

    Without a given rank the sum of the ranks, and the best once more at half of it; with weights no
    way that trains. A way that cannot be had is a trial that says why. Trials come with their
    adapters as fitted without the held part.
    """
    cut = [held_back(source.examples) for source in sources]
    fitted = [replace(s, examples=kept) for s, (kept, _) in zip(sources, cut, strict=True)]
    held = [rows for _, rows in cut]
    if not any(held):
        raise ConfigError(
            "auto chooses by trained questions, and none of these memories has any; name a method."
        )
    best: Trial | None = None
    for method, options in grid:
        if weights is not None and method in TRAINING:
            continue
        found = _tried(model, fitted, held, method, weights, rank, options, watch or Watch())
        if best is None or found.merit > best.merit:
            best = found
        yield found
    less = int(TRUNCATED * sum(source.adapter.config.rank for source in sources))
    if rank is None and best is not None and best.adapter is not None and less > 0:
        method = "svd" if best.method == "cat" else best.method
        yield _tried(model, fitted, held, method, weights, less, best.options, watch or Watch())


def held_back(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Examples to fit, and those to ask: one form of every answer that was trained in several.

    Where most answers were trained in one form only, all are fitted, and asked. At most N_HELD are
    asked, whatever their number; examples that are declined, or have no prompt, are not.
    """
    asked = [row for row in examples if row.prompt and row.kind != "unknown"]
    forms: dict[str, list[Example]] = {}
    for row in asked:
        forms.setdefault(normalise(row.completion), []).append(row)
    several = [rows for rows in forms.values() if len(rows) > 1]
    if 2 * len(several) < len(forms) or not forms:
        return list(examples), _some(asked or examples)
    held = [min(rows, key=lambda row: digest(row.prompt)) for rows in several]
    out = set(held)
    return [row for row in examples if row not in out], _some(held)


def _some(rows: Sequence[Example]) -> list[Example]:
    return sorted(rows, key=lambda row: digest([row.completion, row.prompt]))[:N_HELD]


def _tried(
    model: Model,
    sources: Sequence[Source],
    held: Sequence[Sequence[Example]],
    method: str,
    weights: Sequence[float] | None,
    rank: int | None,
    options: Options,
    watch: Watch,
) -> Trial:
    """Merge one way and ask for what was held back."""
    watch.step(f"trying {spelt(method, options)}")
    began = time.monotonic()
    try:
        adapter, _ = make(model, sources, method, weights, rank, options)
        shares, sure = kept_share(model, adapter, held)
    except LorewrightError as error:
        total = sum(source.adapter.config.rank for source in sources)
        seconds = time.monotonic() - began
        return Trial(method, options, rank or total, (), 0.0, seconds, None, str(error))
    seconds = time.monotonic() - began
    return Trial(method, options, adapter.config.rank, shares, sure, seconds, adapter)


def kept_share(
    model: Model, adapter: Adapter, held: Sequence[Sequence[Example]]
) -> tuple[tuple[Proportion, ...], float]:
    """Per source the share of questions that decoding would answer exactly; how sure, on average.

    By teacher-forced traces: greedy decoding gives a completion exactly when every token of it is
    the likeliest after the true ones before it.
    """
    shares: list[Proportion] = []
    least: list[float] = []
    with model.using(adapter):
        for rows in held:
            found = trace(model, [model.render(row.prompt, row.completion) for row in rows])
            shares.append(wilson(sum(each.exact for each in found), len(found)))
            least += [min(each.p) for each in found]
    return tuple(shares), sum(least) / max(1, len(least))


def spelt(method: str, options: Options) -> str:
    """A method with its options, as people write it."""
    return " ".join([method, *(f"{key} {value:g}" for key, value in options.items())])
