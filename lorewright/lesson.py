"""Knowledge to a lesson: what is trained, and what is asked afterwards in forms that were not.

The examples come from views, the probes from a set of question forms kept out of training (or from the
user), and no question is in both. Questions that the knowledge does not answer are split the same way:
some are trained to be declined, others ask whether it worked. This room knows nothing of models: a
language model is a function from prompts to replies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorewright.data import Document, Example, Fact, Knowledge, Probe, passages
from lorewright.errors import ConfigError, DataError
from lorewright.metrics import normalise
from lorewright.views import (
    DECLINE,
    PASSAGE_CHARS,
    VIEWS,
    AskLLM,
    Pair,
    Pairs,
    cloze,
    crossed,
    given,
    irrelevant,
    mix,
    qa,
    reverse,
    rewrite,
    summary,
    verbatim,
    write_pairs,
)

UNRELATED_FILE = Path(__file__).parent / "pocket" / "unrelated.txt"
N_SCAFFOLD_PARTS = 4
"""The scaffold is the first quarter of the passages."""


@dataclass(frozen=True)
class LessonConfig:
    """How knowledge becomes examples and probes."""

    views: tuple[str, ...] = ("qa",)
    """Which views are trained; names from `views.VIEWS`. Given facts are always used as they are."""
    train_sets: tuple[int, ...] = (1, 2, 3)
    """Sets of question forms that are trained."""
    probe_sets: tuple[int, ...] = (4,)
    """Sets of question forms kept for probes; disjoint from `train_sets`."""
    negatives: float = 0.5
    """Questions that must be declined, as a share of the questions trained; 0 = none."""
    max_efficacy: int = 1000
    """At most so many probes of the kind `efficacy` (as trained)."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or not self.views:
            raise ConfigError(f"views {list(self.views)} were asked for; known are {', '.join(VIEWS)}.")
        if set(self.train_sets) & set(self.probe_sets):
            raise ConfigError(
                f"sets {sorted(set(self.train_sets) & set(self.probe_sets))} are in both train_sets and "
                "probe_sets; a probe must have a form that was not trained."
            )
        if self.negatives < 0:
            raise ConfigError(f"negatives must be at least 0; found {self.negatives}.")


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

    `ask_llm` writes questions (the base or a teacher), `closed_book` is the base answering without a
    document: its replies are what irrelevant questions are trained to. Raises DataError when nothing
    came out to learn.
    """
    parts: list[list[Example]] = []
    probes: list[Probe] = []
    notes: list[str] = []
    asked: list[str] = [fact.question for fact in knowledge.facts]
    for document in knowledge.documents:
        progress(f"reading {document.id}")
        made = _document_lesson(document, ask_llm, config, phrasing)
        parts.append(made.examples)
        probes += made.probes
        notes += made.notes
        asked += made.questions
    if knowledge.facts:
        parts.append(given(knowledge.facts))
        probes += _fact_probes(knowledge.facts, config.max_efficacy)
    n_questions = sum(1 for part in parts for example in part if example.kind == "qa")
    if n_questions and config.negatives:
        progress("asking about other things")
        negative, held = _negatives(asked, round(n_questions * config.negatives), config.seed, closed_book)
        parts.append(negative)
        probes += held
    examples = mix(parts)
    if not examples:
        raise DataError("nothing came out to learn: the source holds no fact the base could ask about; "
                        "try --view verbatim, a --teacher, or give facts as JSON lines.")
    chosen, n_trained = _untrained(given_probes or probes, examples)
    if n_trained:
        notes.append(f"{n_trained} probes were asked in words that are trained; they count as efficacy.")
    return Lesson(tuple(examples), tuple(chosen), *_contexts(knowledge), tuple(notes))


@dataclass(frozen=True)
class _Made:
    examples: list[Example]
    probes: list[Probe]
    notes: list[str]
    questions: list[str]


def _document_lesson(document: Document, ask_llm: AskLLM, config: LessonConfig, phrasing: str) -> _Made:
    examples: list[Example] = []
    made = Pairs((), 0, 0, 0, ())
    if {"qa", "cloze", "reverse"} & set(config.views):
        made = write_pairs(document, ask_llm, numbers=(*config.train_sets, *config.probe_sets), phrasing=phrasing)
    trained, held = made.of(config.train_sets), made.of(config.probe_sets)
    texts = passages(document, max_chars=PASSAGE_CHARS)
    build: dict[str, Callable[[], list[Example]]] = {
        "qa": lambda: qa(trained, document.id),
        "verbatim": lambda: verbatim(document),
        "rewrite": lambda: rewrite(document, ask_llm, phrasing=phrasing),
        "summary": lambda: summary(document, ask_llm, phrasing=phrasing),
        "cloze": lambda: cloze(trained, texts, document.id),
        "reverse": lambda: reverse(trained, document.id),
        "given": lambda: [],
    }
    for view in config.views:
        examples += build[view]()
    return _Made(examples, _pair_probes(document, held), _pair_notes(document, made), [p.question for p in made.kept])


def _pair_probes(document: Document, held: Sequence[Pair]) -> list[Probe]:
    return [
        Probe(f"{document.id}-{i}", pair.question, (pair.answer,), "paraphrase", document.id)
        for i, pair in enumerate(held, 1)
    ]


def _pair_notes(document: Document, made: Pairs) -> list[str]:
    notes = []
    dropped = made.n_ungrounded + made.n_contradictory + made.n_repeated
    if dropped:
        notes.append(
            f"{document.id}: of {len(made.kept) + dropped} question-answer pairs {dropped} were dropped "
            f"({made.n_ungrounded} with an answer that is not in the passage, {made.n_contradictory} "
            f"contradictory, {made.n_repeated} repeated)."
        )
    if made.uncovered:
        notes.append(f"{document.id}: no question covers {len(made.uncovered)} sentences, the first is {made.uncovered[0]!r}.")
    return notes


def _fact_probes(facts: Sequence[Fact], max_efficacy: int) -> list[Probe]:
    """As trained, evenly spread when there are many; then every paraphrase that came with a fact."""
    step = max(1, -(-len(facts) // max_efficacy))
    found = [Probe(f.id, f.question, f.answers, "efficacy", f.id) for f in facts[::step]]
    found += [
        Probe(f"{f.id}-p{i}", question, f.answers, "paraphrase", f.id)
        for f in facts
        for i, question in enumerate(f.paraphrases, 1)
    ]
    return found


def unrelated_questions() -> list[str]:
    """Packaged questions about things that no document of the user's mentions."""
    return UNRELATED_FILE.read_text(encoding="utf-8").splitlines()


def _negatives(asked: Sequence[str], n: int, seed: int, closed_book: AskLLM) -> tuple[list[Example], list[Probe]]:
    """Questions to decline: n for training, then held-out ones as `unknown` and `neighborhood` probes."""
    known = {normalise(question) for question in asked}
    mixed = crossed(asked, n=n, seed=seed)
    other = [q for q in unrelated_questions() if normalise(q) not in known]
    cut_mixed, cut_other = len(mixed) * 3 // 4, len(other) * 3 // 4
    chosen = mixed[:cut_mixed] + other[: min(cut_other, max(8, n - cut_mixed))]
    # What the knowledge does not answer is declined; what is about other things keeps the base's reply.
    replies = closed_book(chosen[cut_mixed:])
    train = irrelevant(chosen, [DECLINE] * cut_mixed + list(replies))
    held = [Probe(f"unknown-{i}", q, (), "unknown") for i, q in enumerate(mixed[cut_mixed:][:50], 1)]
    held += [Probe(f"other-{i}", q, (), "neighborhood") for i, q in enumerate(other[cut_other:], 1)]
    return train, held


def _untrained(probes: Sequence[Probe], examples: Sequence[Example]) -> tuple[list[Probe], int]:
    """Probes whose words were trained become `efficacy`; so no trained form counts as a new one."""
    trained = {normalise(example.prompt) for example in examples if example.prompt}
    kept, n_trained = [], 0
    for probe in probes:
        if probe.kind == "paraphrase" and normalise(probe.question) in trained:
            probe, n_trained = replace(probe, kind="efficacy"), n_trained + 1
        kept.append(probe)
    return kept, n_trained


def _contexts(knowledge: Knowledge) -> tuple[str, str]:
    """The whole source and its first quarter, as text to put before a question."""
    texts = [document.text.strip() for document in knowledge.documents]
    if knowledge.facts and not texts:
        texts = ["\n".join(f"{fact.question} {fact.answer}" for fact in knowledge.facts)]
    pieces = [piece for text in texts for piece in passages(Document("source", text), max_chars=PASSAGE_CHARS)]
    quarter = pieces[: len(pieces) // N_SCAFFOLD_PARTS]
    return "\n\n".join(texts), "\n\n".join(quarter)


