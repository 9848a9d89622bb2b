"""Knowledge to a lesson: what is trained, and what is asked afterwards in forms that were not.

The examples come from views, the probes from a set of question forms kept out of training (or from
the user), and no question is in both. Questions that the knowledge does not answer are split the
same way: some are trained to be declined, others ask whether it worked. This room knows nothing of
models: a language model is a function from prompts to replies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import Document, Example, Fact, Knowledge, Probe
from lorewright.knowledge.negatives import (
    DECLINE,
    crossed,
    irrelevant,
    reworded,
    strangers,
    unrelated_questions,
)
from lorewright.knowledge.scoring import contains, normalise
from lorewright.knowledge.selfstudy import N_PAIR_SETS, AskLLM, Pair, Pairs, texts_of, write_pairs
from lorewright.knowledge.splitting import passages
from lorewright.knowledge.views import (
    VIEWS,
    cloze,
    given,
    mix,
    qa,
    reverse,
    rewrite,
    summary,
    verbatim,
)

SETS = range(1, N_PAIR_SETS + 1)
N_HELD_UNKNOWN = 50
"""At most so many probes that ask for what the knowledge does not say."""
N_LEAST_OTHER = 8
"""At least so many questions about other things are trained, however small the source."""
OTHER_SHARE = 0.3
"""At most so many, as a share of the questions trained; other negatives are near misses."""
N_SCAFFOLD_PARTS = 4
"""The scaffold is the first quarter of the pieces."""
SCAFFOLD_CHARS = 420
"""Longest piece that the source is cut into for the scaffold, in characters."""


@dataclass(frozen=True)
class LessonConfig:
    """How knowledge becomes examples and probes."""

    views: tuple[str, ...] = ("qa",)
    """Which views are trained; names from `views.VIEWS`. Facts are always used as they are."""
    train_sets: tuple[int, ...] = (1, 2, 3, 5, 6)
    """Sets of question forms that are trained."""
    probe_sets: tuple[int, ...] = (4,)
    """Sets of question forms kept for probes; disjoint from `train_sets`."""
    negatives: float = 2.0
    """Questions that must be declined, at most, as a share of the questions trained; 0 = none.

    Half of them ask the source's own subjects for what it says of others, half ask strangers for
    what it says of its own."""
    max_efficacy: int = 1000
    """At most so many probes of the kind `efficacy` (as trained)."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or not self.views:
            raise ConfigError(
                f"views {list(self.views)} were asked for; known are {', '.join(VIEWS)}."
            )
        if not self.train_sets or not {*self.train_sets, *self.probe_sets} <= {*SETS}:
            raise ConfigError(
                f"train_sets are {list(self.train_sets)}, probe_sets {list(self.probe_sets)}; "
                f"train at least one, and use sets from {SETS[0]} to {SETS[-1]}."
            )
        both = sorted(set(self.train_sets) & set(self.probe_sets))
        if both:
            raise ConfigError(
                f"sets {both} are in both train_sets and probe_sets; a probe must have a form that "
                "was not trained."
            )
        if not 0 <= self.negatives < math.inf:
            raise ConfigError(f"negatives must be a share of at least 0; found {self.negatives}.")
        if self.max_efficacy < 1:
            raise ConfigError(f"max_efficacy must be at least 1; found {self.max_efficacy}.")


@dataclass(frozen=True)
class Lesson:
    """What is trained and what is asked."""

    examples: tuple[Example, ...]
    probes: tuple[Probe, ...]
    full: str
    """The whole source as text, for the control that has it in the prompt."""
    scaffold: str
    """The first quarter of the source."""
    notes: tuple[str, ...]
    """What was dropped or left out, in sentences."""

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Lesson:
        """The lesson that was stored as plain data. Raises DataError for data of another shape."""
        try:
            return cls(
                tuple(Example(**row) for row in plain["examples"]),
                tuple(Probe(**row) for row in plain["probes"]),
                str(plain["full"]),
                str(plain["scaffold"]),
                tuple(map(str, plain["notes"])),
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"a stored lesson is not as expected ({error}); delete its run and write again."
            ) from error


def prepare(
    knowledge: Knowledge,
    *,
    ask_llm: AskLLM,
    closed_book: AskLLM,
    config: LessonConfig,
    phrasing: str = "general",
    given_probes: Sequence[Probe] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> Lesson:
    """Turn documents and facts into examples and probes that share no question.

    `ask_llm` writes questions (the base or a teacher), `closed_book` is the base answering without
    a document: its replies are what irrelevant questions are trained to. `given_probes` stand in
    for those made here. Raises DataError when nothing came out to learn.
    """
    parts: list[list[Example]] = []
    probes: list[Probe] = []
    notes: list[str] = []
    for document in knowledge.documents:
        progress(f"reading {document.id}")
        made = _document_lesson(document, ask_llm, config, phrasing)
        parts.append(made.examples)
        probes += made.probes
        notes += made.notes
    if knowledge.facts:
        parts.append(given(knowledge.facts))
        probes += _fact_probes(knowledge.facts, config.max_efficacy)
    trained = [
        (example.prompt, example.completion)
        for part in parts
        for example in part
        if example.kind == "qa"
    ]
    if trained and config.negatives:
        progress("asking about other things")
        held = [probe.question for probe in (*probes, *given_probes)]
        n = round(len(trained) * config.negatives)
        kept = 0 if given_probes else N_HELD_UNKNOWN
        negative, unanswered = _negatives(trained, held, n, config.seed, closed_book, kept)
        parts.append(negative)
        probes += unanswered
    examples = mix(parts)
    if not examples:
        raise DataError(
            "nothing came out to learn: the source holds no fact the base could ask about; "
            "try --view verbatim, a --teacher, or give facts as JSON lines."
        )
    chosen, n_trained = _untrained(given_probes or probes, examples)
    if n_trained:
        are = "probe is" if n_trained == 1 else "probes are"
        notes.append(f"{n_trained} {are} asked in words that are trained: counted as efficacy.")
    return Lesson(tuple(examples), tuple(chosen), *contexts(knowledge), tuple(notes))


@dataclass(frozen=True)
class _Made:
    examples: list[Example]
    probes: list[Probe]
    notes: list[str]


def _document_lesson(
    document: Document, ask_llm: AskLLM, config: LessonConfig, phrasing: str
) -> _Made:
    made = Pairs((), 0, 0, 0, ())
    if {"qa", "cloze", "reverse"} & set(config.views):
        numbers = (*config.train_sets, *config.probe_sets)
        made = write_pairs(document, ask_llm, numbers=numbers, phrasing=phrasing)
    trained, held = made.of(config.train_sets), made.of(config.probe_sets)
    texts = texts_of(document, phrasing)
    build: dict[str, Callable[[], list[Example]]] = {
        "qa": lambda: qa(trained, document.id),
        "verbatim": lambda: verbatim(document),
        "rewrite": lambda: rewrite(document, ask_llm, phrasing=phrasing),
        "summary": lambda: summary(document, ask_llm, phrasing=phrasing),
        "cloze": lambda: cloze(trained, texts, document.id),
        "reverse": lambda: reverse(trained, document.id),
        "given": list,
    }
    examples = [example for view in config.views for example in build[view]()]
    probes = _pair_probes(document, held) + _unanswerable(document)
    return _Made(examples, probes, _pair_notes(document, made))


def _pair_probes(document: Document, held: Sequence[Pair]) -> list[Probe]:
    return [
        Probe(f"{document.id}-{i}", pair.question, (pair.answer,), "paraphrase", document.id)
        for i, pair in enumerate(held, 1)
    ]


def _unanswerable(document: Document) -> list[Probe]:
    """Questions that came with the document as ones it does not answer (SQuAD v2)."""
    questions = document.meta.get("unanswerable") or ()
    return [
        Probe(f"{document.id}-unanswerable-{i}", question, (), "unknown", document.id)
        for i, question in enumerate(questions, 1)
    ]


def _pair_notes(document: Document, made: Pairs) -> list[str]:
    notes = []
    dropped = made.n_ungrounded + made.n_contradictory + made.n_repeated
    if dropped:
        notes.append(
            f"{document.id}: of {len(made.kept) + dropped} question-answer pairs {dropped} were "
            f"dropped ({made.n_ungrounded} with an answer that is not in the passage, "
            f"{made.n_contradictory} contradictory, {made.n_repeated} repeated)."
        )
    if made.uncovered:
        notes.append(
            f"{document.id}: no question covers {len(made.uncovered)} of its sentences, the first "
            f"is {made.uncovered[0]!r}."
        )
    return notes


def _fact_probes(facts: Sequence[Fact], max_efficacy: int) -> list[Probe]:
    """As trained, evenly spread when there are many; then every paraphrase that was given."""
    step = max(1, -(-len(facts) // max_efficacy))
    found = [Probe(f.id, f.question, f.answers, "efficacy", f.id) for f in facts[::step]]
    found += [
        Probe(f"{f.id}-p{i}", question, f.answers, "paraphrase", f.id)
        for f in facts
        for i, question in enumerate(f.paraphrases, 1)
    ]
    return found


def _negatives(
    asked: Sequence[tuple[str, str]],
    held: Sequence[str],
    n: int,
    seed: int,
    closed_book: AskLLM,
    kept: int,
) -> tuple[list[Example], list[Probe]]:
    """Questions to decline: n for training; others, not trained, as `unknown` and `neighborhood`.

    A quarter of the near misses, at most `kept`, are left for probes; none where probes are given.

    They are crossed from trained questions only, so that no form kept for probes is trained, and
    none asks what a trained or a held question asks.
    """
    trained = [question for question, _ in asked]
    probed = [normalise(question) for question in held]
    known = {*map(normalise, trained), *probed}
    mixed = [q for q in crossed(trained, n=n // 2, seed=seed) if not _asked(q, probed)]
    other = [q for q in unrelated_questions() if normalise(q) not in known]
    cut_other, part = len(other) * 3 // 4, len(mixed) - min(kept, -(-len(mixed) // 4))
    strange = strangers(trained, other[:cut_other], n=n - n // 2, seed=seed)
    unknown = mixed[part:]
    reserved = {*known, *map(normalise, unknown)}
    false = reworded([*mixed[:part], *strange], asked, seed=seed)
    mixed = [q for q in false if normalise(q) not in reserved and not _asked(q, probed)]
    cut_mixed = len(mixed)
    n_other = min(n, round(OTHER_SHARE * len(trained))) - cut_mixed
    chosen = mixed + other[: min(cut_other, max(N_LEAST_OTHER, n_other))]
    # What the knowledge does not answer is declined; other things keep the base's own reply.
    replies = closed_book(chosen[cut_mixed:])
    train = irrelevant(chosen, [DECLINE] * cut_mixed + list(replies))
    probes = [Probe(f"unknown-{i}", q, (), "unknown") for i, q in enumerate(unknown, 1)]
    probes += [
        Probe(f"other-{i}", q, (), "neighborhood") for i, q in enumerate(other[cut_other:], 1)
    ]
    return train, probes


def _asked(question: str, known: Sequence[str]) -> bool:
    """Whether a known question names the subject and the topic of `<topic> of <subject>`."""
    topic, _, subject = question.rpartition(" of ")
    _, the, words = normalise(topic).rpartition(" the ")
    about, named = normalise(subject), set(words.split() if the else words.split()[-1:])
    return any(about in q and named <= set(q.split()) for q in known)


def _untrained(probes: Sequence[Probe], examples: Sequence[Example]) -> tuple[list[Probe], int]:
    """Probes whose words were trained become `efficacy`; so no trained form counts as a new one."""
    trained = {normalise(example.prompt) for example in examples if example.prompt}
    kept, n_trained = [], 0
    for probe in probes:
        if probe.kind == "paraphrase" and normalise(probe.question) in trained:
            probe, n_trained = replace(probe, kind="efficacy"), n_trained + 1
        kept.append(probe)
    return kept, n_trained


def grounds(examples: Sequence[Example], knowledge: Knowledge) -> list[str]:
    """What a reader would need before each example's prompt: the piece of text that answers it.

    Of the passages of the example's document that hold its answer (of all, where none holds it
    literally) the one that shares most words with prompt and answer; for a given fact the fact
    itself; nothing for questions that are declined. This is what the teacher of context
    distillation reads.
    """
    pieces = {
        document.id: passages(document.text, max_chars=SCAFFOLD_CHARS)
        for document in knowledge.documents
    }
    facts = {(fact.question, fact.answer) for fact in knowledge.facts}
    found = []
    for example in examples:
        words = set(normalise(f"{example.prompt} {example.completion}").split())
        near = pieces.get(example.source, ())
        holding = [piece for piece in near if example.completion in piece] or near
        best = max(holding, key=lambda p: len(words & set(normalise(p).split())), default="")
        if not best and (example.prompt, example.completion) in facts:
            best = f"{example.prompt} {example.completion}"
        found.append("" if example.kind == "unknown" else best)
    return found


def contexts(knowledge: Knowledge) -> tuple[str, str]:
    """The whole source and its first quarter, as text to put before a question.

    A fact that stands in the document it was given for is not said again.
    """
    texts = [document.text.strip() for document in knowledge.documents]
    read = {document.id: document.text for document in knowledge.documents}
    lines = [
        f"{fact.question} {fact.answer}"
        for fact in knowledge.facts
        if not contains(read.get(fact.source, ""), fact.answers)
    ]
    texts += ["\n".join(lines)] if lines else []
    pieces = [piece for text in texts for piece in passages(text, max_chars=SCAFFOLD_CHARS)]
    quarter = pieces[: len(pieces) // N_SCAFFOLD_PARTS]
    return "\n\n".join(texts), "\n\n".join(quarter)
