"""Ask: who reads a question, with what before it, and which of the replies is the answer.

    closed   the memory, with nothing before the question
    open     the base, with passages before it
    read     the base reads the passages and the question, the memory answers
    hybrid   closed, open, and the memory with the passages; what they agree on
    full     the base, with the whole source before it

How sure a reply was is the geometric mean of its tokens' probabilities. Declining is a reply. Of
several memories that may answer, each gets the question alone, and those that decline leave it to
the others. `lore bench memories` measures that beside merging the two into one adapter. Which
memories may answer, and where passages come from, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from lorewright.adapters.adapter import Adapter
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.negatives import DECLINE
from lorewright.knowledge.scoring import LEAST_SUPPORT, is_declined, normalise
from lorewright.models.model import Model, Rendered
from lorewright.recall.support import Weighed, geometric_mean, weigh
from lorewright.recall.traces import trace
from lorewright.recall.verify import MAX_ANSWER_TOKENS
from lorewright.writers.adapter import AdapterState
from lorewright.writers.reading import prefilled, spoken
from lorewright.writers.writer import State

STACK = 32
"""At most so many memories are attached at once."""
PREFILLS = 8
"""At most so many prompts that the base has read wait for a memory to answer."""
UNNAMED = "unnamed"
WITHHELD = (
    "the reply was withheld: the memory is not sure enough of it, or no question that was trained "
    "with this answer is near to this one (support {support:.2f}); --support 0 shows it"
)


@dataclass(frozen=True)
class Candidate:
    """A memory that may answer, and what there is of it to read."""

    memory: str
    probability: float | None = None
    """That the answer is in it; None = unknown."""
    passages: tuple[str, ...] = ()
    """Best first."""
    source: str = ""
    """All of it, for mode full."""
    trained: bool = False
    """Whether the memory was trained to answer this question, word for word."""


@dataclass(frozen=True)
class Reading:
    """A question before one reader: the memory or the base alone, texts before it or none."""

    question: str
    memory: str
    """Whose question it is."""
    way: str
    """Name of its way in WAYS."""
    before: tuple[str, ...] = ()
    """Texts that stand before the question."""

    @property
    def reader(self) -> str:
        """The memory that is attached; empty for the base alone."""
        return self.memory if WAYS[self.way].attached else ""


@dataclass(frozen=True)
class Reply:
    """What one reader replied."""

    memory: str
    """Whose question it was; empty for the base's own."""
    way: str
    text: str
    declined: bool
    """Whether it is empty or says that it does not know."""
    confidence: float
    """Geometric mean of the probabilities of its tokens, in [0, 1]."""
    least: float
    """Smallest of these probabilities: below 1/2, another token was close."""
    passages: tuple[str, ...] = ()
    """What was read."""
    support: float | None = None
    """Its nearness times confidence, see `recall.support`; None = unknown."""
    withheld: bool = False
    """Whether it has too little support to count."""

    @property
    def answers(self) -> bool:
        """Whether it says something that counts."""
        return not (self.declined or self.withheld)


NearnessOf = Callable[[Reading, str], float | None]
"""A reading and the reply to the reply's nearness; None where nothing can be said."""


class Standard(NamedTuple):
    """How much support a memory's own replies need."""

    nearness_of: NearnessOf
    least: float = LEAST_SUPPORT


@dataclass(frozen=True)
class Answer:
    """What came back, from whom, and what it rests on."""

    question: str
    text: str
    memory: str
    """Name of the memory that was attached or read; empty for the base alone, and for none."""
    declined: bool
    """Whether the reply is empty or says that it does not know, or no memory may answer."""
    confidence: float
    """Geometric mean of the probabilities of the reply's own tokens, in [0, 1]."""
    least: float
    """Smallest of these probabilities: below 1/2, another token was close."""
    mode: str = "closed"
    way: str = "closed"
    """Which reader gave it: a name of WAYS."""
    probability: float | None = None
    """That the memory holds the answer, by its keys; None = unknown."""
    passages: tuple[str, ...] = ()
    """What stood before the question."""
    replies: tuple[Reply, ...] = ()
    """Every reply that was weighed, this one included."""
    considered: tuple[Candidate, ...] = ()
    """The memories nearest to the question, best first, chosen or not."""
    note: str = ""
    """Why it was declined, or what else should be known."""


# -- readers and their replies -------------------------------------------------------------------


def read(
    model: Model,
    readings: Sequence[Reading],
    state_of: Callable[[str], Adapter | State],
    *,
    max_new_tokens: int = MAX_ANSWER_TOKENS,
    standard: Standard | None = None,
) -> list[Reply]:
    """Put every reading before its reader; greedy replies in the order given.

    What memories say without a text to read is weighed where there is a `standard`. Adapters are
    attached in stacks, states of other kinds one by one, and a memory's questions are one batch.
    Raises DataError for a prompt that leaves no space for a reply.
    """
    replies: dict[int, Reply] = {}
    by_reader: dict[str, list[int]] = {}
    handed_over: dict[str, list[int]] = {}
    for i, reading in enumerate(readings):
        chosen = by_reader if WAYS[reading.way].throughout else handed_over
        chosen.setdefault(reading.reader, []).append(i)

    def hear(name: str) -> None:
        own = by_reader[name]
        texts = _replies(model, [readings[i] for i in own], max_new_tokens)
        replies.update(zip(own, texts, strict=True))
        bare = [i for i in own if name and standard and not readings[i].before]
        if standard and bare:
            pairs = [(readings[i], replies[i]) for i in bare]
            replies.update(zip(bare, _weighed(model, pairs, standard), strict=True))

    if "" in by_reader:
        hear("")
    names = sorted(by_reader.keys() - {""})
    for start in range(0, len(names), STACK):
        states = {name: _plain(state_of(name)) for name in names[start : start + STACK]}
        adapters = {name: each for name, each in states.items() if isinstance(each, Adapter)}
        with model.using(*adapters.values()) as stack:
            for n, name in enumerate(adapters):
                assert stack is not None
                stack.bind(torch.full((len(by_reader[name]),), n))
                hear(name)
        for name, state in states.items():
            if not isinstance(state, Adapter):
                with state.on(model):
                    hear(name)
    for name, own in handed_over.items():
        texts = _replies_after_base(
            model, [readings[i] for i in own], state_of(name), max_new_tokens
        )
        replies.update(zip(own, texts, strict=True))
    return [replies[i] for i in range(len(readings))]


def _plain(state: Adapter | State) -> Adapter | State:
    """The adapter itself, for many of them are attached at once."""
    return state.adapter if isinstance(state, AdapterState) else state


def _replies(model: Model, readings: Sequence[Reading], max_new_tokens: int) -> list[Reply]:
    """Replies of whoever is attached."""
    prompts = [model.render(prompt_of(reading)).prompt_ids for reading in readings]
    outputs = model.generate_ids(prompts, max_new_tokens=max_new_tokens)
    pairs = list(zip(prompts, outputs, strict=True))
    spoken = [Rendered(prompt, tuple(ids)) for prompt, ids in pairs if ids]
    traces = iter(trace(model, spoken))
    return [
        _reply(reading, model.decode(ids), next(traces).p if ids else ())
        for reading, ids in zip(readings, outputs, strict=True)
    ]


def _replies_after_base(
    model: Model, readings: Sequence[Reading], state: Adapter | State, max_new_tokens: int
) -> list[Reply]:
    """Replies of a memory from what the base has of the prompts, some prompts at a time."""
    state = AdapterState(state) if isinstance(state, Adapter) else state
    replies = []
    for start in range(0, len(readings), PREFILLS):
        group = readings[start : start + PREFILLS]
        prompts = [model.render(prompt_of(reading)).prompt_ids for reading in group]
        prefills = [prefilled(model, prompt) for prompt in prompts]
        with state.on(model):
            for reading, prefill in zip(group, prefills, strict=True):
                limit = min(max_new_tokens, model.context - len(prefill.prompt_ids))
                ids, p = spoken(model, prefill, limit)
                replies.append(_reply(reading, model.decode(list(ids)), p))
    return replies


def _weighed(
    model: Model, pairs: Sequence[tuple[Reading, Reply]], standard: Standard
) -> list[Reply]:
    """Replies of whoever is attached, or what it would say in place of declining, with support."""
    weighed = weigh(
        model,
        [reading.question for reading, _ in pairs],
        [reply.text for _, reply in pairs],
        [partial(_nearness, standard, reading) for reading, _ in pairs],
    )
    return [_by(standard, reply, each) for (_, reply), each in zip(pairs, weighed, strict=True)]


def _nearness(standard: Standard, reading: Reading, question: str, reply: str) -> float | None:
    return standard.nearness_of(reading, reply)


def _by(standard: Standard, reply: Reply, weighed: Weighed) -> Reply:
    """A reply that has its support, or another in its place; withheld where that is too little."""
    if weighed.support is None:
        return reply
    stands = weighed.support >= standard.least
    if not reply.declined:
        return replace(reply, support=weighed.support, withheld=not stands)
    if not stands:
        return reply
    sure, least = geometric_mean(weighed.p), min(weighed.p)
    about = {"text": weighed.text, "declined": False, "support": weighed.support}
    return replace(reply, **about, confidence=sure, least=least)  # type: ignore[arg-type]


def prompt_of(reading: Reading) -> str:
    """What stands before the question and the question, as probes with a context have them."""
    return "\n\n".join([*reading.before, reading.question])


def _reply(reading: Reading, text: str, probabilities: Sequence[float]) -> Reply:
    p = [min(value, 1.0) for value in probabilities]  # rounding may leave one a hair above
    declined = not text or is_declined(text)
    sure, least = geometric_mean(p), min(p, default=0.0)
    return Reply(reading.memory, reading.way, text, declined, sure, least, reading.before)


# -- modes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way of reading: with the memory attached or the base alone, and after which texts."""

    attached: bool
    before: Callable[[Candidate], tuple[str, ...]]
    throughout: bool = True
    """Whether who answers has read the prompt as well; else the base has, see `writers.reading`."""


WAYS = {
    "closed": Way(True, lambda candidate: ()),
    "open": Way(False, lambda candidate: candidate.passages),
    "together": Way(True, lambda candidate: candidate.passages),
    "read": Way(True, lambda candidate: candidate.passages, throughout=False),
    "full": Way(False, lambda candidate: (candidate.source,)),
}

MODES: dict[str, tuple[str, ...]] = {
    "closed": ("closed",),
    "open": ("open",),
    "read": ("read",),
    "hybrid": ("closed", "open", "together"),
    "full": ("full",),
}
"""Mode to the ways of which `agreed` chooses; see the module's first lines."""


def readings_of(question: str, candidate: Candidate, mode: str) -> list[Reading]:
    """Who reads a question in a mode, and what; without passages the memory alone.

    Raises ConfigError for an unknown mode, DataError when there is nothing to read in mode full.
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is unknown; use one of {', '.join(MODES)}.")
    if mode == "full" and not candidate.source:
        raise DataError(
            f"memory {candidate.memory!r} has no source to put before the question; ask it "
            "closed-book."
        )
    names = MODES[mode] if candidate.passages or mode == "full" else ("closed",)
    return [
        Reading(question, candidate.memory, name, WAYS[name].before(candidate)) for name in names
    ]


def agreed(replies: Sequence[Reply], *, trained: bool = False) -> Reply:
    """Of several readers of one memory's texts: the answer they are together most confident of.

    Equal answers add up, and so do all that decline. The most confident alone would often be the
    base that declines, in forms of text or question that it does not know. Of the readers who gave
    the answer, the most confident is returned. Readers that decline do not outvote the memory on a
    question that it was `trained` to answer; a reply that is withheld has no vote. `lore modes`
    measures the rule on a folder.
    """
    replies = [reply for reply in replies if not reply.withheld] or replies
    if trained and any(reply.way == "closed" and reply.answers for reply in replies):
        replies = [reply for reply in replies if not reply.declined]
    total: dict[str, float] = {}
    for reply in replies:
        total[_content(reply)] = total.get(_content(reply), 0.0) + reply.confidence
    most = max(total.values())
    agreeing = [reply for reply in replies if total[_content(reply)] == most]
    return max(agreeing, key=lambda reply: reply.confidence)


def _content(reply: Reply) -> str:
    return "" if reply.declined else normalise(reply.text)


def best(replies: Sequence[Reply]) -> Reply:
    """Of several memories: the most confident that does not decline, the first if all do.

    A memory that lacks the answer is very sure in declining, so declining does not count here.
    """
    answering = [reply for reply in replies if reply.answers]
    return max(answering, key=lambda reply: reply.confidence, default=replies[0])


def ask_each(
    model: Model,
    questions: Sequence[tuple[str, Sequence[Candidate]]],
    state_of: Callable[[str], Adapter | State],
    *,
    mode: str = "closed",
    max_new_tokens: int = MAX_ANSWER_TOKENS,
    standard: Standard | None = None,
) -> list[Answer]:
    """Answer questions from their candidates, all in a few batches; none = the base alone.

    Of one memory's readers what is `agreed` counts, of several memories the `best`. With a
    `standard` what a memory says without a text to read needs support, see `recall.support`.
    Raises ConfigError for an empty question or an unknown mode, DataError for one that leaves no
    space for a reply.
    """
    plans: list[list[list[Reading]]] = []
    for question, candidates in questions:
        question = question.strip()
        if not question:
            raise ConfigError("ask was given an empty question; write one.")
        alone = [[Reading(question, "", "open")]]
        plans.append([readings_of(question, c, mode) for c in candidates] or alone)
    flat = [reading for plan in plans for group in plan for reading in group]
    replies = iter(read(model, flat, state_of, max_new_tokens=max_new_tokens, standard=standard))
    answers = []
    for (question, candidates), plan in zip(questions, plans, strict=True):
        groups = [[next(replies) for _ in group] for group in plan]
        trained = [each.trained for each in candidates] or [False]
        chosen = best([agreed(g, trained=t) for g, t in zip(groups, trained, strict=True)])
        answers.append(_answer(question.strip(), chosen, groups, candidates, mode))
    return answers


def _answer(
    question: str,
    chosen: Reply,
    groups: Sequence[Sequence[Reply]],
    candidates: Sequence[Candidate],
    mode: str,
) -> Answer:
    probability = {each.memory: each.probability for each in candidates}
    return Answer(
        question,
        DECLINE if chosen.withheld else chosen.text,
        chosen.memory,
        chosen.declined or chosen.withheld,
        chosen.confidence,
        chosen.least,
        mode,
        chosen.way,
        probability.get(chosen.memory),
        chosen.passages,
        tuple(reply for group in groups for reply in group),
        tuple(candidates),
        WITHHELD.format(support=chosen.support) if chosen.withheld else "",
    )


def ask(
    model: Model,
    question: str,
    *,
    adapter: Adapter | None = None,
    memory: str = "",
    max_new_tokens: int = MAX_ANSWER_TOKENS,
) -> Answer:
    """Answer a question closed-book from one adapter, or from the base alone.

    Raises ConfigError for an empty question, DataError for one that leaves no space for a reply.
    """

    def only(name: str) -> Adapter:
        assert adapter is not None
        return adapter

    own = [Candidate(memory or UNNAMED)] if adapter is not None else []
    (answer,) = ask_each(model, [(question, own)], only, max_new_tokens=max_new_tokens)
    return replace(answer, memory=memory)
