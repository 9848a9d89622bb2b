"""Ways of merging, by name: several adapters to one, from whatever evidence a method looks at.

    adapter = METHODS["tsv"](adapters, Evidence(model, examples))

Those of `algebra.COMBINATIONS` look at the weights alone, `regmean` at inputs as well; `imitate`
follows what each source does on its examples, `refine` trains on from there, `rewrite` anew. What a
method has to note is in its adapter's card, under `merge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lorewright.adapters.adapter import HALVES, Adapter, content_id
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example
from lorewright.knowledge.lesson import Lesson
from lorewright.merging import algebra
from lorewright.merging.algebra import COMBINATIONS, check_options
from lorewright.merging.imitate import Source, grams, imitate
from lorewright.models.model import Model
from lorewright.training import loop
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

Options = Mapping[str, Any]
REFINED_EPOCHS = 6
"""Passes over the examples of all sources, at most, after they were imitated."""
TRUNCATED = 0.995
"""Share of a merged weight change below which it is noted that the rank cuts it."""


@dataclass(frozen=True)
class Evidence:
    """What a method may look at besides the adapters, and what is wanted of it."""

    model: Model
    examples: Sequence[Sequence[Example]]
    """What each adapter was trained on."""
    weights: Sequence[float] | None = None
    """Factors on each ΔW; None = 1."""
    rank: int | None = None
    """None = the sum of the ranks."""
    options: Options = field(default_factory=dict)
    """The method's own."""
    watch: Watch = field(default_factory=Watch)
    rehearsal: Sequence[Example] = ()
    """General questions with the base's own replies, which training goes over beside these."""

    @classmethod
    def of(cls, model: Model, lessons: Sequence[Lesson], **more: Any) -> Evidence:
        """What some lessons train and rehearse; `more` are further fields."""
        examples = [lesson.examples for lesson in lessons]
        rehearsal = [example for lesson in lessons for example in lesson.rehearsal]
        return cls(model, examples, rehearsal=rehearsal, **more)

    def sources(self, adapters: Sequence[Adapter]) -> list[Source]:
        """Each adapter with what it was trained on."""
        return [Source(*pair) for pair in zip(adapters, self.examples, strict=True)]


Merge = Callable[[Sequence[Adapter], Evidence], Adapter]
"""Adapters of one base to one plain adapter on it; raises ConfigError for options that it lacks."""


def named(method: str | Merge) -> tuple[str, Merge]:
    """A method with its name. Raises ConfigError with the names there are."""
    if not isinstance(method, str):
        return method.__name__, method
    if method not in METHODS:
        listed = ", ".join(("auto", *METHODS))
        raise ConfigError(f"there is no method {method!r}; choose one of {listed}.")
    return method, METHODS[method]


def _combined(name: str, adapters: Sequence[Adapter], evidence: Evidence) -> Adapter:
    """By a combination of weight changes."""
    inputs = {}
    if name == "regmean":
        sources = evidence.sources(adapters)
        inputs = {"grams": [grams(evidence.model, source) for source in sources]}
    merged = algebra.merge(
        adapters, evidence.weights, name, evidence.rank, **evidence.options, **inputs
    )
    notes = list(merged.notes)
    if merged.share < TRUNCATED:
        notes.append(
            f"rank {merged.adapter.config.rank} keeps {merged.share:.0%} of the merged weight "
            "change in the layer where it keeps least."
        )
    return _noted(merged.adapter, notes)


def _imitated(adapters: Sequence[Adapter], evidence: Evidence) -> Adapter:
    """One adapter that does on each source's examples what the source does."""
    check_options(imitate, evidence.options)
    copy = imitate(
        evidence.model,
        evidence.sources(adapters),
        evidence.weights,
        evidence.rank,
        progress=evidence.watch.step,
        **evidence.options,
    )
    return _noted(copy.adapter, copy.notes)


def _refined(adapters: Sequence[Adapter], evidence: Evidence) -> Adapter:
    """The sources imitated, then trained on what they were trained on until all is recalled."""
    config = _training(evidence, "refine", epochs=REFINED_EPOCHS)  # refused before the imitation
    copy = _imitated(adapters, replace(evidence, options={}))
    # At the scale of fresh adapters, so that the rate that suits them suits it.
    lora = replace(copy.config, alpha=None)
    more = copy.config.scale / lora.scale
    tensors = {k: t * more if k.endswith(HALVES[1]) else t for k, t in copy.tensors.items()}
    start = replace(copy, config=lora, tensors=tensors)
    return _trained(adapters, evidence, "refine", replace(config, lora=lora), start)


def _rewritten(adapters: Sequence[Adapter], evidence: Evidence) -> Adapter:
    """A new adapter trained on what all sources were trained on."""
    config = _training(evidence, "rewrite")
    own = [each.config for each in adapters]
    rank = evidence.rank or sum(each.rank for each in own)
    lora = LoraConfig(rank, None, own[0].targets, own[0].layers)
    return _trained(adapters, evidence, "rewrite", replace(config, lora=lora), None)


def _training(evidence: Evidence, method: str, **usual: Any) -> WriteConfig:
    """The settings of a method that trains. Raises ConfigError for weights and for others."""
    if evidence.weights is not None:
        raise ConfigError(f"{method} trains on all examples alike; leave the weights out.")
    allowed = ("lr", "epochs", "batch_size", "margin", "seed")
    if strange := sorted(evidence.options.keys() - {*allowed}):
        raise ConfigError(f"{method} takes options {list(allowed)}; unknown: {strange}.")
    return WriteConfig(**{"lr": suggested_lr(evidence.model), **usual, **evidence.options})


def _trained(
    adapters: Sequence[Adapter],
    evidence: Evidence,
    method: str,
    config: WriteConfig,
    start: Adapter | None,
) -> Adapter:
    rows = list(dict.fromkeys(row for examples in evidence.examples for row in examples))
    rows += dict.fromkeys(evidence.rehearsal)
    watch = evidence.watch
    written = loop.write(
        evidence.model, rows, config, start=start, on_epoch=watch.epoch, advance=watch.advance
    )
    record = {
        "method": method,
        "rank": config.lora.rank,
        "reason": written.reason,
        "epochs": len(written.epochs),
        "sources": [content_id(each) for each in adapters],
    }
    adapter = replace(written.adapter, card={"merge": record})
    return _noted(adapter, [f"{method} trains on the sources' examples."])


def _noted(adapter: Adapter, notes: Sequence[str]) -> Adapter:
    record = {**adapter.card.get("merge", {}), "notes": list(notes)}
    return replace(adapter, card={**adapter.card, "merge": record})


METHODS: dict[str, Merge] = {
    **{name: partial(_combined, name) for name in COMBINATIONS},
    "imitate": _imitated,
    "refine": _refined,
    "rewrite": _rewritten,
}
