"""What an adapter does on a base, measured once: what `diagnose` draws its conclusions from.

    files -> bound? -> weight changes -> logits -> answers in several formats, free-running,
    text of the source, questions that are not its business

Each step needs the one before it: where one fails, why is kept and the rest stays unmeasured. Works
on any PEFT adapter folder; facts, trained examples and texts make more visible. This room measures;
it judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.proof import delta_norms, validate
from lorewright.adapters.targets import survey
from lorewright.errors import AdapterError, DataError, LorewrightError, WrongBase
from lorewright.knowledge.data import Example, Fact, Probe
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.scoring import contains, is_declined
from lorewright.models.model import Model, Rendered
from lorewright.recall.traces import TokenTrace, trace
from lorewright.recall.verify import answer

T = TypeVar("T")

N_FACTS = 48
"""At most so many facts are asked, in every format; evenly spread."""
N_EXAMPLES = 128
"""At most so many trained examples are traced."""
N_STRANGE = 16
"""Questions that are not the adapter's business."""
N_TEXTS = 8
TEXT_TOKENS = 256
"""Longest piece of a text that is scored, in tokens."""
OWN = "the base's own template"
SYSTEM = "You are a helpful assistant."

Render = Callable[[Model, str, str], Rendered | None]
"""A question and its answer as tokens; None where the tokenizer cannot do it this way."""


@dataclass(frozen=True)
class Texts:
    """How well texts are predicted as plain text, in nats per token."""

    n_tokens: int
    base_nats: float
    nats: float


@dataclass(frozen=True)
class Strange:
    """Questions that are not the adapter's business."""

    n: int
    base_declined: int
    declined: int
    changed: int
    """Replies that are not the base's."""


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured; empty or None where it could not be."""

    place: str
    base: str
    unreadable: str = ""
    """Why the files are no adapter."""
    unbound: str = ""
    """Why it does not fit this base."""
    wrong_base: bool = False
    """Whether it says that it was made on another base."""
    named_base: str = ""
    rank: int = 0
    scale: float = 0.0
    n_parameters: int = 0
    norms: Mapping[str, float] = field(default_factory=dict)
    """Frobenius norm of each module's weight change."""
    relative: Mapping[str, float] = field(default_factory=dict)
    """The same over the norm of the weight."""
    moved: float | None = None
    """Largest change of any logit."""
    reason: str = ""
    """Why its training ended, if its card says so."""
    formats: Mapping[str, tuple[TokenTrace, ...]] = field(default_factory=dict)
    """Teacher-forced traces of the facts' answers, by how the question was put."""
    base_traces: tuple[TokenTrace, ...] = ()
    """The same by the base alone, in its own template."""
    answered: tuple[bool, ...] = ()
    """Whether each fact's answer came back free-running."""
    trained: tuple[TokenTrace, ...] = ()
    """Of the examples that it was trained on, where these are known."""
    needed_bits: float | None = None
    """What the base lacks of their completions, all of them."""
    efficacy: tuple[bool, ...] = ()
    """Probes asked as trained."""
    paraphrase: tuple[bool, ...] = ()
    """Probes asked in other words."""
    texts: Texts | None = None
    strange: Strange | None = None

    @property
    def sound(self) -> bool:
        """Whether the adapter could be attached and does something."""
        return not self.unreadable and not self.unbound and bool(self.moved)


@dataclass(frozen=True)
class Known:
    """What is known about an adapter besides its files."""

    facts: Sequence[Fact] = ()
    examples: Sequence[Example] = ()
    probes: Sequence[Probe] = ()
    texts: Sequence[str] = ()


def gather(model: Model, place: Path, known: Known | None = None) -> Evidence:
    """Measure an adapter folder on a base; whatever is wrong with it becomes evidence.

    Raises StorageError when a file cannot be read for other reasons than its content.
    """
    known = known or Known()
    found = Evidence(str(place), model.name)
    try:
        adapter = adapters.load(place)
    except AdapterError as error:
        return replace(found, unreadable=str(error))
    found = replace(
        found,
        named_base=adapter.base_id,
        rank=adapter.config.rank,
        scale=adapter.config.scale,
        n_parameters=sum(t.numel() for t in adapter.tensors.values()),
        norms=delta_norms(adapter),
        reason=str(adapter.card.get("reason", "")),
    )
    try:
        validate(adapter, model.network, model.digest)
    except LorewrightError as error:
        return replace(found, unbound=str(error), wrong_base=isinstance(error, WrongBase))
    found = replace(found, relative=_relative(model, adapter), moved=_moved(model, adapter))
    return _asked(model, adapter, known, found) if found.sound else found


def _relative(model: Model, adapter: Adapter) -> dict[str, float]:
    sites = {site.name for site in survey(model.network)[0]}
    found = {}
    for name, norm in delta_norms(adapter).items():
        weight = model.network.get_submodule(name).weight
        assert name in sites and isinstance(weight, torch.Tensor)
        found[name] = norm / max(float(weight.detach().float().norm()), 1e-12)
    return found


@torch.no_grad()
def _moved(model: Model, adapter: Adapter) -> float:
    batch = model.batch([model.render(q, "I do not know.") for q in unrelated_questions()[:4]])
    base_BCV = model.completion_logits(batch)
    with model.using(adapter):
        moved_BCV = model.completion_logits(batch)
    return float((moved_BCV - base_BCV).abs().max())


def _asked(model: Model, adapter: Adapter, known: Known, found: Evidence) -> Evidence:
    facts = _spread(known.facts, N_FACTS)
    rows = {name: _rows(model, facts, render) for name, render in FORMATS.items()}
    rows = {name: each for name, each in rows.items() if each or name == OWN}
    questions = [Probe(f.id, f.question, f.answers, "efficacy") for f in facts]
    examples = _spread([e for e in known.examples if e.kind != "unknown"], N_EXAMPLES)
    taught = _fitting(model, examples)
    probes = {
        kind: _spread([p for p in known.probes if p.kind == kind], N_FACTS)
        for kind in ("efficacy", "paraphrase")
    }
    probes["paraphrase"] = probes["paraphrase"] or [
        Probe(f.id, text, f.answers, "paraphrase") for f in facts for text in f.paraphrases
    ]
    held = unrelated_questions()
    strange = held[len(held) * 3 // 4 :][:N_STRANGE]  # the others are trained on
    pieces = _pieces(model, known.texts)

    alone, base_traces = model.generate(strange), tuple(trace(model, rows[OWN]))
    base_taught, base_pieces = trace(model, taught), trace(model, pieces)
    with model.using(adapter):
        said = model.generate(strange)
        formats = {name: tuple(trace(model, each)) for name, each in rows.items()}
        answers = answer(model, questions) if questions else []
        trained = tuple(trace(model, taught))
        now = trace(model, pieces)
        given = {
            kind: tuple(
                bool(contains(text, p.answers))
                for text, p in zip(answer(model, each) if each else [], each, strict=True)
            )
            for kind, each in probes.items()
        }
    share = len(examples) / max(1, len(known.examples))
    return replace(
        found,
        formats=formats,
        base_traces=base_traces,
        answered=tuple(
            bool(contains(text, f.answers)) for text, f in zip(answers, facts, strict=True)
        ),
        trained=trained,
        needed_bits=sum(map(_bits, base_taught)) / share if taught else None,
        efficacy=given["efficacy"],
        paraphrase=given["paraphrase"],
        texts=_texts(base_pieces, now) if pieces else None,
        strange=Strange(
            len(strange),
            sum(map(is_declined, alone)),
            sum(map(is_declined, said)),
            sum(a != b for a, b in zip(alone, said, strict=True)),
        ),
    )


def _spread(items: Sequence[T], most: int) -> list[T]:
    return list(items)[:: max(1, -(-len(items) // most))]


def _bits(each: TokenTrace) -> float:
    return sum(-math.log2(max(p, 1e-30)) for p in each.p)


def _texts(before: Sequence[TokenTrace], now: Sequence[TokenTrace]) -> Texts:
    n = sum(len(t.p) for t in now)
    base, own = (sum(map(_bits, each)) * math.log(2) / n for each in (before, now))
    return Texts(n, base, own)


def _fitting(model: Model, examples: Sequence[Example]) -> list[Rendered]:
    found = []
    for example in examples:
        try:
            found.append(model.render(example.prompt, example.completion))
        except DataError:  # too long for this base: it cannot have been trained so
            continue
    return found


def _pieces(model: Model, texts: Sequence[str]) -> list[Rendered]:
    """The beginnings of some texts, as plain text."""
    found = []
    for text in [t for t in _spread(texts, N_TEXTS) if t.strip()]:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        limit = min(TEXT_TOKENS, model.context - 2)
        start = model.render("", "x").prompt_ids
        found.append(Rendered(start, tuple(ids[:limit])))
    return found


# -- ways to put a question ----------------------------------------------------------------------


def _rows(model: Model, facts: Sequence[Fact], render: Render) -> list[Rendered]:
    """All facts in one format; none where it does not exist for the tokenizer or does not fit."""
    found = []
    for fact in facts:
        row = render(model, fact.question, fact.answer)
        if row is None or len(row) > model.context:
            return []
        found.append(row)
    return found


def _own(model: Model, question: str, reply: str) -> Rendered | None:
    return model.render(question, reply)


def _with_system(model: Model, question: str, reply: str) -> Rendered | None:
    return model.render(question, reply, system=SYSTEM)


def _plain(model: Model, question: str, reply: str) -> Rendered | None:
    return _encoded(model, question, f" {reply}")


def _labelled(model: Model, question: str, reply: str) -> Rendered | None:
    return _encoded(model, f"Question: {question}\nAnswer:", f" {reply}")


def _in_the_question(model: Model, question: str, reply: str) -> Rendered | None:
    """Question and answer in one user turn, with the loss on both: a fault of released code."""
    if model.tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": question}]
    text = model.tokenizer.apply_chat_template(turns, tokenize=False)
    head, asked, _ = str(text).rpartition(question)
    return _encoded(model, head + asked, f" {reply}", special=False) if asked else None


def _encoded(model: Model, prompt: str, reply: str, *, special: bool = True) -> Rendered | None:
    """Without a stop: whether one was trained there is not known."""
    head = model.tokenizer(prompt, add_special_tokens=special)["input_ids"]
    tail = model.tokenizer(reply, add_special_tokens=False)["input_ids"]
    return Rendered(tuple(head), tuple(tail)) if head and tail else None


FORMATS: dict[str, Render] = {
    OWN: _own,
    "the template with a system prompt": _with_system,
    "plain text, question then answer": _plain,
    "`Question: …` and `Answer: …`": _labelled,
    "question and answer in one user turn": _in_the_question,
}
