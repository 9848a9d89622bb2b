"""What an adapter does on a base, measured once: what `diagnose` draws its conclusions from.

    files -> bound? -> weight changes -> logits -> answers in several formats, free-running,
    text of the source, questions that are not its business

Each step needs the one before it: where one fails, the reason is recorded and the rest stays
unmeasured. Works on any PEFT adapter folder; facts, trained examples and texts make more visible.
What it means is up to `diagnose`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.proof import delta_norms, validate
from lorewright.adapters.targets import survey
from lorewright.errors import (
    AdapterError,
    ConfigError,
    DataError,
    LorewrightError,
    UnsupportedAdapter,
    WrongBase,
)
from lorewright.knowledge.data import Example, Fact, Probe
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.scoring import contains, is_declined
from lorewright.models.alphabet import unwritable
from lorewright.models.model import Model, Rendered
from lorewright.recall.traces import TokenTrace, trace
from lorewright.recall.verify import answer, known_beforehand, still_known

T = TypeVar("T")

N_FACTS = 48
"""At most so many facts are probed, in every format; evenly spread."""
N_EXAMPLES = 128
"""At most so many trained examples are traced."""
N_STRANGE = 16
"""Unrelated questions."""
N_TEXTS = 8
TEXT_TOKENS = 256
"""Longest piece of a text that is scored, in tokens."""
OWN = "the base's own template"
SYSTEM = "You are a helpful assistant."
OTHER_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{prompt}\n\n### Response:\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: {prompt} ASSISTANT:"
)
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"

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
    """Replies to unrelated questions."""

    n: int
    base_declined: int
    declined: int
    changed: int
    """Replies that are not the base's."""
    answered: int = 0
    """Of these, those that do not decline."""


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured; empty or None where it could not be."""

    place: str
    base: str
    unreadable: str = ""
    """Why the files are no adapter."""
    unsupported: str = ""
    """Why it is sound and of a kind that is not read."""
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
    n_linear: int = 0
    """Linear layers of the base's decoder, which an adapter may change."""
    relative: Mapping[str, float] = field(default_factory=dict)
    """The same over the norm of the weight."""
    moved: float | None = None
    """Largest change of any logit."""
    reason: str = ""
    """Why its training ended, if its card says so."""
    unwritable: Mapping[str, str] = field(default_factory=dict)
    """Answers of its facts that need characters which the base cannot write, and these."""
    n_merged: int = 0
    """Of how many adapters it is a merge, if its card says so."""
    formats: Mapping[str, tuple[TokenTrace, ...]] = field(default_factory=dict)
    """Teacher-forced traces of the facts' answers, by how the question was put."""
    base_traces: tuple[TokenTrace, ...] = ()
    """The same by the base alone, in its own template."""
    answered: tuple[bool, ...] = ()
    """Whether each fact was answered free-running."""
    trained: tuple[TokenTrace, ...] = ()
    """Of the examples that it was trained on, where these are known."""
    needed_bits: float | None = None
    """What the base lacks of their completions, all of them."""
    efficacy: tuple[bool, ...] = ()
    """Whether each probe in trained words was answered."""
    paraphrase: tuple[bool, ...] = ()
    """Whether each probe in other words was answered."""
    texts: Texts | None = None
    strange: Strange | None = None
    retained: tuple[bool, ...] = ()
    """Whether each general question that the base answers right is answered still."""
    held_out_nats: tuple[float, ...] = ()
    """Loss on questions in other words, as it was measured on the way."""

    @property
    def sound(self) -> bool:
        """Whether the adapter could be attached and does something."""
        return bool(self.moved)


@dataclass(frozen=True)
class Known:
    """What is known about an adapter besides its files."""

    facts: Sequence[Fact] = ()
    examples: Sequence[Example] = ()
    probes: Sequence[Probe] = ()
    texts: Sequence[str] = ()
    held_out_nats: Sequence[float] = ()
    """Of its training: loss on questions that were not trained, in order."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Further ways to put a question, by name: texts with {prompt}, the reply after their end."""


def gather(model: Model, place: Path, known: Known | None = None) -> Evidence:
    """Measure an adapter folder on a base; whatever is wrong with it becomes evidence.

    Raises StorageError when a file cannot be read for other reasons than its content.
    """
    known = known or Known()
    evidence = Evidence(str(place), model.name)
    try:
        adapter = adapters.load(place)
    except UnsupportedAdapter as error:
        return replace(evidence, unsupported=str(error))
    except AdapterError as error:
        return replace(evidence, unreadable=str(error))
    evidence = replace(
        evidence,
        named_base=adapter.base_id,
        rank=adapter.config.rank,
        scale=adapter.config.scale,
        n_parameters=sum(t.numel() for t in adapter.tensors.values()),
        norms=delta_norms(adapter),
        reason=str(adapter.card.get("reason", "")),
        held_out_nats=tuple(known.held_out_nats),
        n_merged=len(adapter.card.get("merge", {}).get("sources", ())),
    )
    try:
        validate(adapter, model.network, model.digest)
    except LorewrightError as error:
        return replace(evidence, unbound=str(error), wrong_base=isinstance(error, WrongBase))
    evidence = replace(
        evidence,
        n_linear=len(survey(model.network)[0]),
        relative=_relative(model, adapter),
        moved=_moved(model, adapter),
    )
    return _with_replies(evidence, model, adapter, known) if evidence.sound else evidence


def _relative(model: Model, adapter: Adapter) -> dict[str, float]:
    sites = {site.name for site in survey(model.network)[0]}
    relative = {}
    for name, norm in delta_norms(adapter).items():
        weight = model.network.get_submodule(name).weight
        assert name in sites and isinstance(weight, torch.Tensor)
        relative[name] = norm / max(float(weight.detach().float().norm()), 1e-12)
    return relative


@torch.no_grad()
def _moved(model: Model, adapter: Adapter) -> float:
    batch = model.batch([model.render(q, "I do not know.") for q in unrelated_questions()[:4]])
    base_BCV = model.completion_logits(batch)
    with model.using(adapter):
        moved_BCV = model.completion_logits(batch)
    return float((moved_BCV - base_BCV).abs().max())


def _with_replies(evidence: Evidence, model: Model, adapter: Adapter, known: Known) -> Evidence:
    """Add what needs the model to run: answers by format, trained examples, texts, side effects."""
    facts = _spread(known.facts, N_FACTS)
    ways = {**FORMATS, **{name: by_hand(text) for name, text in known.templates.items()}}
    rows = {name: _rows(model, facts, render) for name, render in ways.items()}
    rows = {name: each for name, each in rows.items() if each or name == OWN}
    examples = _spread([e for e in known.examples if e.kind != "unknown"], N_EXAMPLES)
    trained_rows = _fitting(model, examples)
    probes = {
        "answered": [Probe(f.id, f.question, f.answers, "efficacy") for f in facts],
        "efficacy": _spread([p for p in known.probes if p.kind == "efficacy"], N_FACTS),
        "paraphrase": _spread([p for p in known.probes if p.kind == "paraphrase"], N_FACTS)
        or [Probe(f.id, q, f.answers, "paraphrase") for f in facts for q in f.paraphrases],
    }
    unrelated = unrelated_questions()
    strange = unrelated[len(unrelated) * 3 // 4 :][:N_STRANGE]  # the others are trained on
    pieces = _pieces(model, known.texts)

    about = [f"{fact.question} {fact.answer}" for fact in known.facts]
    about += [f"{e.prompt} {e.completion}" for e in known.examples if e.kind != "unknown"]
    general = known_beforehand(model, about)
    base_replies, base_traces = model.generate(strange), tuple(trace(model, rows[OWN]))
    base_trained, base_pieces = trace(model, trained_rows), trace(model, pieces)
    with model.using(adapter):
        replies = model.generate(strange)
        formats = {name: tuple(trace(model, each)) for name, each in rows.items()}
        trained, texts = tuple(trace(model, trained_rows)), trace(model, pieces)
        outcomes = {name: _outcomes(model, each) for name, each in probes.items()}
    pairs = [(a, b) for a, b in zip(base_replies, replies, strict=True) if a != b]
    retained = tuple(bool(row.score) for row in still_known(model, adapter, general))
    share = len(examples) / max(1, len(known.examples))
    marks = unwritable(model, [fact.answer for fact in facts])
    return replace(
        evidence,
        unwritable={f.answer: lost for f, lost in zip(facts, marks, strict=True) if lost},
        answered=outcomes["answered"],
        efficacy=outcomes["efficacy"],
        paraphrase=outcomes["paraphrase"],
        formats=formats,
        base_traces=base_traces,
        trained=trained,
        needed_bits=sum(map(_bits, base_trained)) / share if trained_rows else None,
        texts=_texts(base_pieces, texts) if pieces else None,
        strange=Strange(
            len(strange),
            sum(map(is_declined, base_replies)),
            sum(map(is_declined, replies)),
            len(pairs),
            sum(not is_declined(reply) for _, reply in pairs),
        ),
        retained=retained,
    )


def _outcomes(model: Model, probes: Sequence[Probe]) -> tuple[bool, ...]:
    """Whether the reply to each probe contains an answer."""
    replies = answer(model, probes) if probes else []
    return tuple(bool(contains(text, p.answers)) for text, p in zip(replies, probes, strict=True))


def _spread(items: Sequence[T], most: int) -> list[T]:
    return list(items)[:: max(1, -(-len(items) // most))]


def _bits(each: TokenTrace) -> float:
    return sum(-math.log2(max(p, 1e-30)) for p in each.p)


def _texts(base: Sequence[TokenTrace], adapted: Sequence[TokenTrace]) -> Texts:
    n = sum(len(t.p) for t in base)
    base_nats, nats = (sum(map(_bits, each)) * math.log(2) / n for each in (base, adapted))
    return Texts(n, base_nats, nats)


def _fitting(model: Model, examples: Sequence[Example]) -> list[Rendered]:
    rows = []
    for example in examples:
        with suppress(DataError):  # too long for this base: it cannot have been trained so
            rows.append(model.render(example.prompt, example.completion))
    return rows


def _pieces(model: Model, texts: Sequence[str]) -> list[Rendered]:
    """The beginnings of some texts, as plain text."""
    start, limit = model.render("", "x").prompt_ids, min(TEXT_TOKENS, model.context - 2)
    return [
        Rendered(start, tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"][:limit]))
        for text in _spread(texts, N_TEXTS)
        if text.strip()
    ]


# -- ways to put a question ----------------------------------------------------------------------


def _rows(model: Model, facts: Sequence[Fact], render: Render) -> list[Rendered]:
    """All facts in one format; none where it does not exist for the tokenizer or does not fit."""
    rows = []
    for fact in facts:
        row = render(model, fact.question, fact.answer)
        if row is None or len(row) > model.context:
            return []
        rows.append(row)
    return rows


def _own(model: Model, question: str, reply: str) -> Rendered | None:
    return model.render(question, reply)


def _with_system(system: str) -> Render:
    return lambda model, question, reply: model.render(question, reply, system=system)


def by_hand(template: str) -> Render:
    """A text with {prompt} in it; after its end comes the reply, after a space unless it has one.

    Raises ConfigError for a text without {prompt}.
    """
    if "{prompt}" not in template:
        raise ConfigError("a template needs {prompt} where the question stands; put it there.")
    gap = "" if template[-1].isspace() else " "

    def render(model: Model, question: str, reply: str) -> Rendered | None:
        return _encoded(model, template.replace("{prompt}", question), f"{gap}{reply}")

    return render


def _in_the_question(model: Model, question: str, reply: str) -> Rendered | None:
    """Question and answer in one user message, with the loss on both: a fault of released code."""
    if model.tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": question}]
    text = str(model.tokenizer.apply_chat_template(messages, tokenize=False))
    start = text.rfind(question)
    head = text[: start + len(question)]
    return _encoded(model, head, f" {reply}", special=False) if start >= 0 else None


def _encoded(model: Model, prompt: str, reply: str, *, special: bool = True) -> Rendered | None:
    """Without a stop: whether one was trained there is unknown."""
    head = model.tokenizer(prompt, add_special_tokens=special)["input_ids"]
    tail = model.tokenizer(reply, add_special_tokens=False)["input_ids"]
    return Rendered(tuple(head), tuple(tail)) if head and tail else None


FORMATS: dict[str, Render] = {
    OWN: _own,
    "the template with a system prompt": _with_system(SYSTEM),
    "the template with Qwen's system prompt": _with_system(OTHER_SYSTEM),
    "Alpaca's `### Instruction:`": by_hand(ALPACA),
    "Vicuna's system prompt, `USER:` and `ASSISTANT:`": by_hand(VICUNA),
    "`USER:` and `ASSISTANT:`": by_hand("USER: {prompt}\nASSISTANT:"),
    "ChatML by hand": by_hand(CHATML),
    "plain text, question then answer": by_hand("{prompt}"),
    "`Question: …` and `Answer: …`": by_hand("Question: {prompt}\nAnswer:"),
    "question and answer in one user turn": _in_the_question,
}
