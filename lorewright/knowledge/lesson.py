"""Knowledge to a lesson: what is trained, and probes in forms of question that are not.

The examples come from views, the probes from a set of question forms held out of training (or from
the user), and no question is in both. Questions that the knowledge does not answer are split the
same way. A language model is a function from prompts to replies; tokens are unknown here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import REHEARSAL, Document, Example, Fact, Knowledge, Probe
from lorewright.knowledge.general import nearest_in_form
from lorewright.knowledge.near_misses import recipe_for
from lorewright.knowledge.negatives import DECLINE, negatives
from lorewright.knowledge.questions import Base, Pair
from lorewright.knowledge.rewording import Reworder
from lorewright.knowledge.scoring import contains, normalise
from lorewright.knowledge.selfstudy import (
    N_PAIR_SETS,
    AskLLM,
    Pairs,
    Study,
    phrasing_named,
    statements,
)
from lorewright.knowledge.splitting import passages
from lorewright.knowledge.views import VIEWS, fact_examples, mix

SETS = range(1, N_PAIR_SETS + 1)
N_HELD_UNKNOWN = 50
"""At most so many probes that ask for what the knowledge does not say."""
N_SCAFFOLD_PARTS = 4
"""The scaffold is the first quarter of the pieces."""
HELD_UNANSWERABLE = 4
"""Every fourth question that a source says it does not answer is a probe; others are trained."""
FEW_WORDED = 1 / 3
"""A base that words questions for a smaller share of the values is advised to have help."""
SCAFFOLD_CHARS = 420
"""Longest piece that the source is cut into for the scaffold, in characters."""


@dataclass(frozen=True)
class LessonConfig:
    """How knowledge becomes examples and probes."""

    views: tuple[str, ...] = ("qa",)
    """Views of documents that are trained; facts are always trained as they are."""
    train_sets: tuple[int, ...] = (1, 2, 3, 5, 6)
    """Sets of question forms that are trained."""
    probe_sets: tuple[int, ...] = (4,)
    """Sets of question forms held out for probes; disjoint from those trained."""
    negatives: float | None = None
    """Questions that must be declined, at most, as a share of the questions trained; 0 = none, by
    default what is usual for the base's wording (`near_misses.NEAR_MISSES`)."""
    rewordings: int = 0
    """Questions in further words that the base makes of those trained, for an answer, at most."""
    rehearse: int = 60
    """General questions with the base's own right replies, at most, that are rehearsed a few at a
    time, so that the write does not cost what was there before: those that ask most nearly as the
    declined questions do; 0 = none."""
    max_efficacy: int = 1000
    """At most so many probes of the kind `efficacy` (as trained)."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if not self.views or not {*self.views} <= VIEWS.keys():
            raise ConfigError(f"views are {list(self.views)}; use some of {', '.join(VIEWS)}.")
        if not self.train_sets or not {*self.train_sets, *self.probe_sets} <= {*SETS}:
            raise ConfigError(
                f"train_sets are {list(self.train_sets)}, probe_sets {list(self.probe_sets)}; "
                f"train at least one, and use sets from {SETS[0]} to {SETS[-1]}."
            )
        both = sorted(set(self.train_sets) & set(self.probe_sets))
        if both:
            raise ConfigError(
                f"sets {both} are in both train_sets and probe_sets; a probe needs a form that is "
                "not trained."
            )
        if self.negatives is not None and not 0 <= self.negatives < math.inf:
            raise ConfigError(f"negatives is {self.negatives}; give a share of at least 0.")
        if self.rehearse < 0:
            raise ConfigError(f"rehearse is {self.rehearse}; give at least 0.")
        if self.rewordings < 0:
            raise ConfigError(f"rewordings is {self.rewordings}; give at least 0.")
        if self.max_efficacy < 1:
            raise ConfigError(f"max_efficacy is {self.max_efficacy}; give at least 1.")


@dataclass(frozen=True)
class Lesson:
    """What is trained, and the probes for afterwards."""

    examples: tuple[Example, ...]
    probes: tuple[Probe, ...]
    full: str
    """The whole source as text, for the control that has it in the prompt."""
    scaffold: str
    """The first quarter of the source."""
    notes: tuple[str, ...]
    """What was dropped or left out, in sentences."""
    n_sentences: int = 0
    """Of the documents of which questions were written; 0 where the probes are the user's."""
    uncovered: tuple[str, ...] = ()
    """Those of them that no question is about, neither trained nor probed."""
    rehearsal: tuple[Example, ...] = ()
    """General questions with the base's own replies; nothing of the knowledge."""
    unwritable: tuple[Example, ...] = ()
    """What cannot be learnt, for the base cannot write its answer; the questions are declined."""

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Lesson:
        """The lesson from plain data as stored. Raises DataError for data of another shape."""
        try:
            return cls(
                tuple(Example(**row) for row in plain["examples"]),
                tuple(Probe(**row) for row in plain["probes"]),
                str(plain["full"]),
                str(plain["scaffold"]),
                tuple(map(str, plain["notes"])),
                int(plain.get("n_sentences", 0)),  # lessons of before have none
                tuple(map(str, plain.get("uncovered", ()))),
                tuple(Example(**row) for row in plain.get("rehearsal", ())),
                tuple(Example(**row) for row in plain.get("unwritable", ())),
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"a stored lesson is not as expected ({error}); delete its run and write again."
            ) from error


CannotWrite = Callable[[Sequence[str]], Sequence[str]]
"""Of each text the characters that a base cannot write; empty where there are none."""


def _writes_all(texts: Sequence[str]) -> list[str]:
    return ["" for _ in texts]


def prepare(
    knowledge: Knowledge,
    *,
    ask_llm: AskLLM,
    closed_book: AskLLM,
    config: LessonConfig,
    phrasing: str = "general",
    base: Base | None = None,
    reworder: Reworder | None = None,
    given_probes: Sequence[Probe] = (),
    general: Sequence[tuple[str, str]] = (),
    cannot_write: CannotWrite = _writes_all,
    progress: Callable[[str], None] = lambda step: None,
) -> Lesson:
    """Turn documents and facts into examples and probes that share no question.

    `ask_llm` writes pairs on request (a teacher, or a base that was trained to); with `base` it
    words questions for the documents' values instead. `reworder` words those that are trained anew,
    as often as the config says. `closed_book` is the base answering without
    a document: its replies are what unrelated questions are trained to. `given_probes`, the user's,
    stand in for those made here. `general` are questions about the world with the base's own right
    replies; those that ask as declined questions do are rehearsed, in place of unrelated ones.
    Questions whose answer holds what the base `cannot_write` are declined: a neighbour's answer
    would be given to them else. Raises DataError when nothing came out to learn, ConfigError for an
    unknown phrasing.
    """
    draft = _Draft(notes=[*knowledge.notes])
    for document in knowledge.documents:
        study = _study(document, ask_llm, phrasing, base, config, progress)
        _add_document(draft, study, knowledge, config, cannot_write, counts=not given_probes)
    _add_facts(draft, knowledge.facts, config, cannot_write)
    trained = [(e.prompt, e.completion) for part in draft.parts for e in part if e.kind == "qa"]
    share = recipe_for(phrasing).share if config.negatives is None else config.negatives
    most = round(len(trained) * share)
    own, held = _split(draft.unanswerable, [p.question for p in given_probes], most)
    draft.probes += held
    if reworder and config.rewordings:
        progress("wording questions anew")
        taken = {normalise(probe.question) for probe in (*draft.probes, *given_probes)}
        draft.add_rewordings(reworder, config.rewordings, taken)
    open_questions = [*draft.open_questions, *own] if share else []
    draft.parts.append(open_questions)
    if trained and share:
        progress("asking about other things")
        asked = [probe.question for probe in (*draft.probes, *given_probes)]
        declined, unanswered = negatives(
            trained,
            [*asked, *(example.prompt for example in open_questions)],
            n=max(0, most - len(own)),
            n_held=0 if given_probes else N_HELD_UNKNOWN,
            seed=config.seed,
            phrasing=phrasing,
            closed_book=closed_book,
            documents=knowledge.documents,
            rehearses=bool(general),
        )
        draft.parts.append(declined)
        draft.probes += unanswered
    examples = mix(draft.parts)
    if not examples:
        raise DataError(
            "nothing came out to learn: the source holds no fact the base could ask about; "
            "try --view verbatim, a --teacher, or give facts as JSON lines."
        )
    chosen, n_trained = _untrained(given_probes or draft.probes, examples)
    if n_trained:
        are = "probe is" if n_trained == 1 else "probes are"
        draft.notes.append(f"{n_trained} {are} worded as trained: counted as efficacy.")
    questions = [question for question, _ in general]
    refused = [e.prompt for e in examples if e.kind == "unknown"]
    forms = refused or [e.prompt for e in examples]
    alike = nearest_in_form(questions, forms, config.rehearse)
    rehearsal = tuple(Example(*general[i], REHEARSAL) for i in alike)
    counted = tuple(draft.notes), draft.n_sentences, tuple(draft.uncovered)
    rest = (*contexts(knowledge), *counted, rehearsal, tuple(draft.unwritable))
    return Lesson(tuple(examples), tuple(chosen), *rest)


@dataclass
class _Draft:
    """A lesson while it is prepared."""

    notes: list[str]
    parts: list[list[Example]] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    n_sentences: int = 0
    uncovered: list[str] = field(default_factory=list)
    open_questions: list[Example] = field(default_factory=list)
    """Questions whose answer the base cannot write: to be declined."""
    unanswerable: list[Example] = field(default_factory=list)
    """Questions that the source says it does not answer."""
    unwritable: list[Example] = field(default_factory=list)

    def add_rewordings(self, reworder: Reworder, n: int, taken: Collection[str]) -> None:
        """Train questions in further words as well, at most n for an answer."""
        given = [e for part in self.parts for e in part if e.kind == "qa"]
        made = reworder.reword(given, n, taken)
        answers, reworded = ({normalise(e.completion) for e in each} for each in (given, made))
        self.parts.append(made)
        self.notes.append(
            f"The base worded {len(made)} of the questions anew, for {len(reworded)} of "
            f"{len(answers)} answers."
        )


def _study(
    document: Document,
    ask_llm: AskLLM,
    phrasing: str,
    base: Base | None,
    config: LessonConfig,
    progress: Callable[[str], None],
) -> Study:
    """A document under study, whose progress is told in words."""
    progress(f"reading {document.id}")

    def show(done: int, total: int, question: str) -> None:
        newest = f"; the newest question: {question}" if question else ""
        progress(f"reading {document.id}: {done} of {total} sentences{newest}")

    words, sets = phrasing_named(phrasing), (config.train_sets, config.probe_sets)
    return Study(document, ask_llm, words, *sets, base, show)


def _add_document(
    draft: _Draft,
    study: Study,
    knowledge: Knowledge,
    config: LessonConfig,
    cannot_write: CannotWrite,
    *,
    counts: bool,
) -> None:
    """What is trained and asked of a document; `counts`: its sentences count in recall."""
    document = study.document
    draft.parts.append([example for view in config.views for example in VIEWS[view](study)])
    pairs = study.pairs if study.wrote_pairs else Pairs()
    draft.probes += _document_probes(document, pairs, config.probe_sets)
    draft.unanswerable += _declined(document.meta.get("unanswerable") or (), document.id)
    lost = _beyond_writing(study, pairs, cannot_write)
    draft.open_questions += _declined([pair.question for pair in lost], document.id)
    n_statements = sum(len(statements(text)) for text in study.passages)
    draft.notes += _pair_notes(document, pairs, n_statements)
    if study.wrote_pairs and counts:
        given = [fact.answers for fact in knowledge.facts if fact.source == document.id]
        left = [s for s in pairs.uncovered if not any(contains(s, a) for a in given)]
        draft.n_sentences += n_statements
        draft.uncovered += left


def _add_facts(
    draft: _Draft, facts: Sequence[Fact], config: LessonConfig, cannot_write: CannotWrite
) -> None:
    """Facts as they are, those that the base can write; the others are to be declined."""
    if not facts:
        return
    marked = list(zip(facts, cannot_write([fact.answer for fact in facts]), strict=True))
    draft.parts.append(fact_examples(fact for fact, lost in marked if not lost))
    draft.unwritable += fact_examples(fact for fact, lost in marked if lost)
    draft.open_questions += [e for u in draft.unwritable for e in _declined([u.prompt], u.source)]
    draft.probes += _fact_probes(facts, config.max_efficacy)


def _document_probes(document: Document, pairs: Pairs, sets: Sequence[int]) -> list[Probe]:
    """The pairs of the held-out sets."""
    own = document.id
    return [
        Probe(f"{own}-{i}", pair.question, (pair.answer,), "paraphrase", own)
        for i, pair in enumerate(pairs.of(sets), 1)
    ]


def _declined(questions: Sequence[str], source: str) -> list[Example]:
    return [Example(question, DECLINE, "unknown", source) for question in questions]


def _split(
    unanswerable: Sequence[Example], probed: Sequence[str], most: int
) -> tuple[list[Example], list[Probe]]:
    """What the source is known not to answer (SQuAD v2): at most so many to train, and probes.

    Every fourth and what exceeds `most` are probes; what is probed already is not trained.
    """
    known = {*map(normalise, probed)}
    fresh = {normalise(e.prompt): e for e in unanswerable if normalise(e.prompt) not in known}
    trained, held = list[Example](), list[Example]()
    for n, example in enumerate(fresh.values(), 1):
        is_held = n % HELD_UNANSWERABLE == 0 or len(trained) >= most
        (held if is_held else trained).append(example)
    return trained, [
        Probe(f"{e.source}-unanswerable-{i}", e.prompt, (), "unknown", e.source)
        for i, e in enumerate(held, 1)
    ]


def _beyond_writing(study: Study, pairs: Pairs, cannot_write: CannotWrite) -> list[Pair]:
    """Dropped pairs whose question is about what the base cannot write, in the forms trained.

    Of the sentences of the passage, those that share most words with the question all hold such a
    character, and no pair that was kept has the question.
    """
    dropped = [pair for pair in pairs.ungrounded if pair.set_number in study.train_sets]
    stated = {pair.passage: statements(study.passages[pair.passage]) for pair in dropped}
    texts = list(dict.fromkeys(s for sentences in stated.values() for s in sentences))
    marks = dict(zip(texts, cannot_write(texts), strict=True))
    asked = {normalise(pair.question) for pair in pairs.grounded}

    def is_about(pair: Pair) -> bool:
        words = set(normalise(pair.question).split())
        shared = {s: len(words & set(normalise(s).split())) for s in stated[pair.passage]}
        most = max(shared.values(), default=0)
        nearest = [s for s, n in shared.items() if n == most]
        return bool(nearest) and all(marks[s] for s in nearest)

    return [p for p in dropped if normalise(p.question) not in asked and is_about(p)]


def _pair_notes(document: Document, pairs: Pairs, n: int) -> list[str]:
    """What of a document of n sentences was dropped, and what no question is about."""
    notes = []
    if pairs.n_values:
        few = pairs.n_worded < FEW_WORDED * pairs.n_values
        advice = (
            " The base words few questions: a --teacher, or facts as JSON lines, would do better."
        )
        notes.append(
            f"{document.id}: {pairs.n_values} values are stated; for {pairs.n_worded} of them the "
            "base worded a question that it answers when it reads the passage; the others are "
            f"learnt in their own sentence.{advice if few else ''}"
        )
    n_dropped = pairs.n_ungrounded + pairs.n_contradictory + pairs.n_repeated
    if n_dropped:
        notes.append(
            f"{document.id}: of {len(pairs.grounded) + n_dropped} question-answer pairs "
            f"{n_dropped} were dropped ({pairs.n_ungrounded} with an answer that is not in the "
            f"passage, {pairs.n_contradictory} contradictory, {pairs.n_repeated} repeated)."
        )
    if pairs.uncovered:
        missed = len(pairs.uncovered)
        notes.append(
            f"{document.id}: no question covers {missed} of its {n} sentences "
            f"({missed / n:.0%}); the first is {pairs.uncovered[0]!r}."
        )
    return notes


def _fact_probes(facts: Sequence[Fact], max_efficacy: int) -> list[Probe]:
    """Questions as trained, evenly spread when there are many; then every paraphrase of a fact."""
    step = max(1, -(-len(facts) // max_efficacy))
    probes = [Probe(f.id, f.question, f.answers, "efficacy", f.id) for f in facts[::step]]
    return probes + [
        Probe(f"{f.id}-p{i}", question, f.answers, "paraphrase", f.id)
        for f in facts
        for i, question in enumerate(f.paraphrases, 1)
    ]


def _untrained(probes: Sequence[Probe], examples: Sequence[Example]) -> tuple[list[Probe], int]:
    """Probes whose words were trained become `efficacy`; so no trained form counts as a new one."""
    trained = {normalise(example.prompt) for example in examples if example.prompt}
    checked = [
        replace(probe, kind="efficacy")
        if probe.kind == "paraphrase" and normalise(probe.question) in trained
        else probe
        for probe in probes
    ]
    return checked, sum(a is not b for a, b in zip(checked, probes, strict=True))


def grounds(examples: Sequence[Example], knowledge: Knowledge) -> list[str]:
    """The piece of text that answers each example's prompt: what a reader would need before it.

    Of the passages of the example's document that hold its answer (of all, where none holds it
    literally) the one that shares most words with prompt and answer; for a fact the fact itself;
    nothing for questions that are declined. The teacher of context distillation reads this.
    """
    pieces = {
        document.id: passages(document.text, max_chars=SCAFFOLD_CHARS)
        for document in knowledge.documents
    }
    facts = {(fact.question, fact.answer) for fact in knowledge.facts}

    def ground(example: Example) -> str:
        if example.kind == "unknown":
            return ""
        words = set(normalise(f"{example.prompt} {example.completion}").split())
        near = pieces.get(example.source, ())
        holding = [piece for piece in near if example.completion in piece] or near
        best = max(holding, key=lambda p: len(words & set(normalise(p).split())), default="")
        is_fact = (example.prompt, example.completion) in facts
        return best or (f"{example.prompt} {example.completion}" if is_fact else "")

    return [ground(example) for example in examples]


def texts_of(knowledge: Knowledge, probes: Sequence[Probe] = ()) -> list[str]:
    """What the knowledge and its probes are about, piece by piece: what general questions avoid."""
    texts = [f"{fact.question} {fact.answer}" for fact in knowledge.facts]
    texts += [sentence for doc in knowledge.documents for sentence in statements(doc.text)]
    return [*texts, *(probe.question for probe in probes)]


def contexts(knowledge: Knowledge) -> tuple[str, str]:
    """The whole source and its first quarter, as text to put before a question.

    A fact that stands in the document it came with is not repeated.
    """
    texts = [document.text.strip() for document in knowledge.documents]
    by_id = {document.id: document.text for document in knowledge.documents}
    lines = [
        f"{fact.question} {fact.answer}"
        for fact in knowledge.facts
        if not contains(by_id.get(fact.source, ""), fact.answers)
    ]
    texts += ["\n".join(lines)] if lines else []
    pieces = [piece for text in texts for piece in passages(text, max_chars=SCAFFOLD_CHARS)]
    quarter = pieces[: len(pieces) // N_SCAFFOLD_PARTS]
    return "\n\n".join(texts), "\n\n".join(quarter)
