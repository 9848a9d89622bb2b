"""Benchmark `memories`: many documents, a memory each, questions that do not name one.

    base        the base alone
    oracle      the memory that holds the answer
    routed      the memory nearest by its keys
    abstaining  the same, or the base where the gate refuses
    wrong       another memory, drawn by seed
    single      all documents in one adapter whose rank is the sum of the memories'
    merged      the memories merged into one adapter
    open        passages retrieved by the keys, the base
    full        the whole right document, the base
    hybrid      what `lore ask` does by default

The questions are in forms that no lesson trains: `known` to the base otherwise, or `new` to it too.
Strangers are questions of the same kind about subjects of no document; near misses ask a document's
own subjects for what it says of others. Pairs are two questions in one, from two documents.

A folder holds the memories (`lore ask` opens them), one file of replies an arm, record.json. What
is there is not done again. Shares carry n and Wilson's interval; differences are paired, with a
bootstrap interval and McNemar's exact p; the share of the oracle that routing keeps is resampled by
document, since questions on one document are not independent.

Documents are JSON lines: id, title, text and facts, each with an answer and its questions by kind;
the packaged ones are made by pocket/documents.py. Of a file of sections (`sections`) the facts are
written in all wordings but one, the question; near misses are the file's own, strangers the
packaged general questions.
"""

from __future__ import annotations

import random
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np

from lorewright import __version__
from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.bench.recipes import Case, cases_of
from lorewright.bench.routers import first_right, routers
from lorewright.bench.tables import spelt
from lorewright.bench.task import Progress, Summary, Task
from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.files import digest, dump_jsonl, load_jsonl, read_object, read_text, save_json
from lorewright.knowledge.data import Document, Example, Fact, Knowledge, Probe
from lorewright.knowledge.general import apart_from, general_questions
from lorewright.knowledge.lesson import Lesson, LessonConfig, texts_of
from lorewright.knowledge.scoring import METRICS, contains
from lorewright.memory.ask import N_PASSAGES, ask_as
from lorewright.memory.folder import LESSON_FILE, lesson_in
from lorewright.memory.memory import Memory
from lorewright.memory.merge import unopposed
from lorewright.memory.route import FALSE_ACTIVATION, FolderRouter
from lorewright.memory.verify import usual_metric
from lorewright.memory.write import lesson_for
from lorewright.merging.algebra import merge
from lorewright.merging.choosing import merged_by
from lorewright.merging.methods import Evidence
from lorewright.models.model import Model
from lorewright.recall.statistics import (
    Estimate,
    estimate,
    mcnemar,
    mean_interval,
    paired_difference,
)
from lorewright.reports.tables import Table
from lorewright.routing.ask import MODES, Answer, Candidate, ask_each
from lorewright.routing.index import Hit
from lorewright.training.config import Diverged, Job, WriteConfig
from lorewright.training.loop import write, write_all
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

HERE = Path(__file__).parent
DOCUMENTS = HERE / "memories.jsonl"
STRANGERS = HERE / "strangers.txt"
RECORD_FILE = "record.json"
ARMS_OF = {
    "strangers": ("base", "routed", "abstaining", "single", "merged", "open", "read", "hybrid"),
    "near misses": (
        *("base", "oracle", "abstaining", "single", "merged", "open", "full", "read", "hybrid"),
    ),
}
"""Arms that also answer other questions than those on the documents."""
FIVE = ("base", "oracle", "routed", "abstaining", "wrong")
ALL = "all"
N_DRAWS = 2000
STACK = 16
"""Memories written at once."""
SINGLE, MERGED = "all, written together", "all, merged"
"""Adapters of all documents; no name of a memory has a comma."""
OWN = ("question", "answer")
"""Fields of a fact that are no kind of question: lessons train the plain form."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    model: str = "pocket"
    """A base: pocket, a folder, a .gguf file, or a name on the hub."""
    n_documents: int = 64
    """Documents, a memory each."""
    rank: int = 4
    """Of each memory; the single adapter has the sum of them."""
    margin: float = 0.9
    """Recalled means p above this at every token, as in `lore demo`."""
    epochs: int = 60
    """Budget of every write."""
    false_activation: float = FALSE_ACTIVATION
    """Share of strangers' questions that may activate a memory."""
    merge_method: str = "imitate"
    """As in `lore merge`, or auto."""
    arms: tuple[str, ...] = ()
    """Some of the arms; empty = all."""
    seed: int = 0
    """Of writes and draws."""
    documents: str = ""
    """A file of documents, or of sections (.json); empty = the packaged ones."""
    left_out: int = 4
    """The wording, from 1, of sections' facts that is the question and never written."""
    patience: int = 0
    """Epochs without another example recalled that end a write; 0 = none do."""
    strangers: str = ""
    """A file of questions about other things, one a line; empty = the packaged ones."""
    n_strangers: int = 600
    """Questions about other things."""
    n_near: int = 256
    """Near misses."""
    n_pairs: int = 128
    """Questions with a rival memory, and questions that are two in one."""
    n_routed: int = 256
    """Questions on which routers are compared."""
    n_timed: int = 32
    """Questions that are timed."""

    def __post_init__(self) -> None:
        """Check ranges and arms; everything else is checked where it is used."""
        if self.n_documents < 2 or self.rank < 1 or self.epochs < 1:
            raise ConfigError(
                f"n_documents is {self.n_documents}, rank {self.rank}, epochs {self.epochs}; give "
                "at least 2 documents, rank 1 and one epoch."
            )
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise ConfigError(f"arm {unknown[0]!r} is unknown; use some of {', '.join(ARMS)}.")

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that stored replies depend on."""
        return {k: v for k, v in asdict(self).items() if k not in ("model", "arms")}


def quick(settings: Settings) -> Settings:
    """Few documents and epochs: shows that everything works, and no result."""
    return replace(
        settings,
        n_documents=min(settings.n_documents, 4),
        epochs=min(settings.epochs, 3),
        n_strangers=40,
        n_near=16,
        n_pairs=8,
        n_routed=16,
        n_timed=2,
    )


@dataclass(frozen=True)
class Question:
    """A question on one document."""

    text: str
    answer: str
    document: str
    kind: str


@dataclass(frozen=True)
class Page:
    """A document with the questions on it."""

    document: Document
    questions: tuple[Question, ...]
    facts: tuple[Fact, ...] = ()
    """What is written of it, where that is not left to the base."""
    near: tuple[Question, ...] = ()
    """Near misses, where they are given."""

    @property
    def source(self) -> Knowledge:
        """The document with its facts."""
        return Knowledge((self.document,), self.facts)

    def lesson(self, model: Model) -> Lesson:
        """Examples of its facts as they are given, or of what the base writes about it."""
        if not self.facts:
            return lesson_for(model, self.source, LessonConfig(), watch=Watch())
        probes = [
            Probe(f"{q.document}-{n}", q.text, (), "unknown") for n, q in enumerate(self.near)
        ]
        given = Knowledge((), self.facts)
        config = LessonConfig(views=("given",))
        return lesson_for(model, given, config, probes=probes, watch=Watch())


def read_pages(path: Path, n: int, left_out: int = 4) -> list[Page]:
    """The first n documents of a file. Raises DataError for too few, or rows of another shape."""
    sections = path.suffix == ".json"
    rows: Sequence[Any] = cases_of(str(path), left_out) if sections else load_jsonl(path)
    if len(rows) < n:
        raise DataError(
            f"{path} holds {len(rows)} documents; {n} are needed; give more or lower --documents."
        )
    if sections:
        return list(map(_section, rows[:n]))
    try:
        return [_page(row) for row in rows[:n]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds a row without {error}; give id, title, text and facts, each with an "
            "answer and questions by kind."
        ) from error


def _page(row: Mapping[str, Any]) -> Page:
    questions = tuple(
        Question(text, fact["answer"], row["id"], kind)
        for fact in row["facts"]
        for kind, text in sorted(fact.items())
        if kind not in OWN
    )
    return Page(Document(row["id"], row["text"], row["title"]), questions)


def _section(case: Case) -> Page:
    """A section: its facts in every wording but the one that is the question."""
    name = case.document.id
    answered = [p for p in case.probes if p.answers]
    questions = tuple(Question(p.question, p.answers[0], name, "reworded") for p in answered)
    near = (Question(p.question, "", name, "near") for p in case.probes if not p.answers)
    return Page(case.document, questions, tuple(chain(*case.facts)), tuple(near))


def _strangers(settings: Settings, pages: Sequence[Page]) -> list[Question]:
    """Questions about other things: a file's, or packaged ones of the documents' kind."""
    if settings.strangers or not any(page.facts for page in pages):
        texts = read_text(Path(settings.strangers or STRANGERS)).splitlines()
    else:
        about = [text for page in pages for text in texts_of(page.source)]
        texts = [each.question for each in apart_from(general_questions("held"), about)]
    return [Question(text, "", "", "stranger") for text in texts[: settings.n_strangers]]


# -- writing them --------------------------------------------------------------------------------


def written(
    folder: Path, model: Model, pages: Sequence[Page], settings: Settings, watch: Watch
) -> Memory:
    """The memories of all pages, in a folder that `lore ask` opens, written in stacks.

    Raises ModelError when a write diverged. What was written before is not written again.
    """
    memory = Memory.open(folder / "memories", model)
    memory.folder.path.mkdir(parents=True, exist_ok=True)
    todo = [page for page in pages if page.document.id not in memory.names]
    for start in range(0, len(todo), STACK):
        group = todo[start : start + STACK]
        stack = folder / "stacks" / group[0].document.id
        with memory.writing():
            spent = _write_stack(memory, group, settings, stack, watch)
        save_json({"n": len(group), **spent}, stack / "seconds.json")
        n_done, seconds = start + len(group), spent["training"]
        watch.step(f"{n_done} of {len(todo)} memories written in {seconds:.0f} s")
    return memory


def _write_stack(
    memory: Memory, pages: Sequence[Page], settings: Settings, stack: Path, watch: Watch
) -> dict[str, float]:
    """Write a memory of each page, all in one stack; seconds of lessons and of training.

    Progress is that of the first.
    """
    began = time.monotonic()
    runs = [_run_with_lesson(memory, page, watch) for page in pages]
    prepared = time.monotonic()
    config = _config(memory.model, settings, settings.rank)
    stack.mkdir(parents=True, exist_ok=True)
    results = write_all(
        memory.model,
        [Job(_examples(lesson_in(run)), config) for run in runs],
        run=stack,
        on_epoch=lambda job, epoch: None if job else watch.epoch(epoch),
        advance=watch.advance,
    )
    for page, run, result in zip(pages, runs, results, strict=True):
        if isinstance(result, Diverged):
            raise ModelError(result.why)
        name, knowledge = page.document.id, page.source
        source, identity = knowledge.digest(), adapters.content_id(result.adapter)
        adapter = replace(result.adapter, card={"name": name, "source": source})
        adapters.save(adapter, memory.folder.state_path(identity))
        memory.folder.store_source(knowledge)
        memory.folder.enter(name, identity, source=source, run=run.name)
        save_json({"memory": name, "adapter": identity}, run / "report.json")
    return {"lessons": prepared - began, "training": time.monotonic() - prepared}


def _run_with_lesson(memory: Memory, page: Page, watch: Watch) -> Path:
    """The run of a page, with its lesson in it."""
    knowledge, name = page.source, page.document.id
    key = digest([knowledge.digest(), memory.model.digest])
    run = memory.folder.run(name, {"key": key, "source": knowledge.digest()})
    if not (run / LESSON_FILE).exists():
        watch.step(f"{name}: writing questions")
        save_json(page.lesson(memory.model), run / LESSON_FILE)
    return run


def _examples(lesson: Lesson) -> list[Example]:
    """What is learnt, and what is rehearsed beside it."""
    return [*lesson.examples, *lesson.rehearsal]


def _config(model: Model, settings: Settings, rank: int) -> WriteConfig:
    return WriteConfig(
        lora=LoraConfig(rank, seed=settings.seed),
        lr=suggested_lr(model),
        epochs=settings.epochs,
        margin=settings.margin,
        patience=settings.patience,
        seed=settings.seed,
    )


# -- arms ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What the arms work with."""

    memory: Memory
    folder: Path
    pages: Mapping[str, Page]
    settings: Settings
    watch: Watch
    loaded: dict[str, Adapter]

    @property
    def router(self) -> FolderRouter:
        """Routes questions to the memories."""
        return self.memory.router.current(self.watch)

    @property
    def metric(self) -> str:
        """By what replies are scored."""
        return usual_metric(self.memory.model)

    def adapter(self, name: str) -> Adapter:
        """A memory's adapter, or one of all documents (SINGLE, MERGED), loaded or made once."""
        if name not in self.loaded:
            make = {SINGLE: _written_together, MERGED: _merged}.get(name)
            self.loaded[name] = make(self) if make else self.memory.adapter(name)
        return self.loaded[name]

    def lesson(self, name: str) -> Lesson:
        """What a memory was trained on."""
        return self.memory.folder.lesson(self.memory.folder.entry(name))

    def chosen(self, text: str) -> Sequence[Hit]:
        """The memories that a question activates."""
        rate = self.settings.false_activation
        return self.router.route(text, false_activation=rate).chosen

    def ask(
        self,
        questions: Sequence[Question],
        candidates: Iterable[Sequence[Candidate]],
        mode: str = "closed",
    ) -> list[Answer]:
        """Answers to questions, each from its candidates; none = the base alone."""
        pairs = [(q.text, own) for q, own in zip(questions, candidates, strict=True)]
        return ask_each(self.memory.model, pairs, self.adapter, mode=mode)

    def ask_as(self, texts: Sequence[str], mode: str) -> list[Answer]:
        """Answers as `lore ask` gives them."""
        rate = self.settings.false_activation
        return ask_as(self.memory, texts, mode=mode, false_activation=rate)


def _written_together(bench: Bench) -> Adapter:
    """One adapter for all documents, its rank the sum of the memories'."""
    place, settings, model = bench.folder / "single", bench.settings, bench.memory.model
    if not (place / "adapter" / "card.json").exists():
        bench.watch.step("writing all documents into one adapter")
        lessons = map(bench.lesson, sorted(bench.pages))
        examples = list(dict.fromkeys(e for lesson in lessons for e in _examples(lesson)))
        config = _config(model, settings, settings.rank * len(bench.pages))
        place.mkdir(parents=True, exist_ok=True)
        result = write(
            model,
            examples,
            config,
            run=place,
            on_epoch=bench.watch.epoch,
            advance=bench.watch.advance,
        )
        card = {"reason": result.reason, "training": asdict(result.epochs[-1])}
        adapters.save(replace(result.adapter, card=card), place / "adapter")
    return adapters.load(place / "adapter")


def _merged(bench: Bench) -> Adapter:
    """All memories merged into one adapter."""
    names = sorted(bench.pages)
    lessons = unopposed(list(map(bench.lesson, names)))
    evidence = Evidence.of(bench.memory.model, lessons, watch=bench.watch)
    return merged_by(bench.settings.merge_method, list(map(bench.adapter, names)), evidence)


def _candidates(hits: Iterable[Hit]) -> list[Candidate]:
    return [Candidate(hit.memory, hit.probability) for hit in hits]


def _other(bench: Bench, questions: Sequence[Question]) -> Iterator[list[Candidate]]:
    """Another memory, drawn at random for every question."""
    rng, names = random.Random(bench.settings.seed), sorted(bench.pages)
    for q in questions:
        yield [Candidate(rng.choice([name for name in names if name != q.document]))]


def _passages(bench: Bench, questions: Sequence[Question]) -> Iterator[list[Candidate]]:
    """The nearest passages of all documents."""
    for q in questions:
        hits = bench.router.index.retrieve(q.text, k=N_PASSAGES, kinds=("passage",))
        yield [Candidate("", passages=tuple(hit.key for hit in hits))] if hits else []


class Arm(NamedTuple):
    """Who answers: in words, and from which candidates each question."""

    meaning: str
    candidates: Callable[[Bench, Sequence[Question]], Iterable[Sequence[Candidate]]] | None
    """None: `lore ask` chooses them in this mode."""
    mode: str = "closed"

    def answers(self, bench: Bench, questions: Sequence[Question]) -> list[Answer]:
        """Answers to the questions."""
        if self.candidates is None:
            return bench.ask_as([q.text for q in questions], self.mode)
        return bench.ask(questions, self.candidates(bench, questions), self.mode)


ARMS: dict[str, Arm] = {
    "base": Arm("the base alone", lambda bench, qs: [()] * len(qs)),
    "oracle": Arm(
        "the memory that holds the answer", lambda bench, qs: [[Candidate(q.document)] for q in qs]
    ),
    "routed": Arm(
        "the memory nearest by its keys",
        lambda bench, qs: [_candidates(bench.router.route(q.text).hits[:1]) for q in qs],
    ),
    "abstaining": Arm(
        "the same, or the base",
        lambda bench, qs: [_candidates(bench.chosen(q.text)) for q in qs],
    ),
    "wrong": Arm("another memory", _other),
    "single": Arm(
        "one adapter of the summed rank for all", lambda bench, qs: [[Candidate(SINGLE)]] * len(qs)
    ),
    "merged": Arm("all memories merged", lambda bench, qs: [[Candidate(MERGED)]] * len(qs)),
    "open": Arm("passages, no memory", _passages, "open"),
    "full": Arm(
        "the right document in the prompt",
        lambda bench, qs: [
            [Candidate(q.document, source=bench.pages[q.document].document.text)] for q in qs
        ],
        "full",
    ),
    "read": Arm("the base reads passages, the memory answers", None, "read"),
    "hybrid": Arm("memory and passages: `lore ask`", None, "hybrid"),
}


def replies(bench: Bench, arm: str, questions: Sequence[Question], name: str) -> list[Answer]:
    """An arm's answers to the questions, from its file, or answered now and stored."""
    path = bench.folder / "replies" / f"{arm}-{name}.jsonl"
    ids = sorted(bench.memory.names.items())
    key = digest([bench.settings.identity, ids, [asdict(q) for q in questions]])
    if path.exists():
        head, *rows = load_jsonl(path)
        if head == {"key": key} and len(rows) == len(questions):
            return [Answer(**row) for row in rows]
    bench.watch.step(f"{name}: {arm}")
    answers = ARMS[arm].answers(bench, questions)
    fields = ("question", "text", "memory", "declined", "confidence", "least", "way", "probability")
    dump_jsonl([{"key": key}, *({k: vars(a)[k] for k in fields} for a in answers)], path)
    return answers


def scores(questions: Sequence[Question], answers: Sequence[Answer], metric: str) -> list[float]:
    """Which answers are right."""
    return [METRICS[metric](a.text, (q.answer,)) for q, a in zip(questions, answers, strict=True)]


# -- other questions -----------------------------------------------------------------------------


def near_misses(bench: Bench) -> list[Question]:
    """Questions that a document's own words make and that it does not answer, evenly drawn."""
    rng, by_page = random.Random(bench.settings.seed), []
    for name in sorted(bench.pages):
        probes = [p for p in bench.lesson(name).probes if p.kind == "unknown"]
        own = list(bench.pages[name].near)
        own = own or [Question(probe.question, "", name, "near") for probe in probes]
        by_page.append(rng.sample(own, len(own)))
    evenly = zip_longest(*by_page)
    return [q for row in evenly for q in row if q is not None][: bench.settings.n_near]


def pairs(bench: Bench) -> list[tuple[Question, Question]]:
    """Pairs of questions on different documents, of the kind that the base knows, drawn by seed."""
    rng = random.Random(bench.settings.seed)
    every = [q for page in bench.pages.values() for q in page.questions]
    pool = [q for q in every if q.kind == min(q.kind for q in every)]
    drawn: list[tuple[Question, Question]] = []
    while len(drawn) < min(bench.settings.n_pairs, len(pool)):
        first, second = rng.sample(pool, 2)
        if first.document != second.document:
            drawn.append((first, second))
    return drawn


def two_in_one(
    bench: Bench, together: Sequence[tuple[Question, Question]]
) -> dict[str, list[float]]:
    """Whether both answers come back when two questions are joined into one, closed-book.

    `parts`: as `lore ask` does, each part of its own memory; `each`: the whole question of both
    memories, and their replies together.
    """
    joined = [
        replace(a, text=f"{a.text.rstrip('?.')} and {b.text[:1].lower()}{b.text[1:]}")
        for a, b in together
    ]
    both = bench.ask(joined, [[Candidate(q.document) for q in pair] for pair in together])
    outputs = {
        "parts": [answer.text for answer in bench.ask_as([q.text for q in joined], "closed")],
        "each": ["; ".join(reply.text for reply in answer.replies) for answer in both],
    }
    return {
        way: [
            float(all(contains(text, (q.answer,)) for q in pair))
            for text, pair in zip(texts, together, strict=True)
        ]
        for way, texts in outputs.items()
    }


def two_memories(bench: Bench, questions: Sequence[Question]) -> dict[str, list[Answer]]:
    """Questions put to the right memory and to the next nearest at once, three ways.

    `each`: both answer, the more confident that does not decline speaks; `cat` and `mean`:
    both are merged into one adapter.
    """
    two: list[tuple[str, str]] = []
    for q in questions:
        nearest = (hit.memory for hit in bench.router.route(q.text).hits)
        others = (name for name in (*nearest, *sorted(bench.pages)) if name != q.document)
        two.append((q.document, next(others)))
    answers = {"each": bench.ask(questions, [list(map(Candidate, names)) for names in two])}
    for method in ("cat", "mean"):
        merges = {
            "+".join(names): merge(list(map(bench.adapter, names)), method=method).adapter
            for names in two
        }
        candidates = [[Candidate("+".join(names))] for names in two]
        answers[method] = replace(bench, loaded=merges).ask(questions, candidates)
    return answers


# -- the record ----------------------------------------------------------------------------------


def run(
    settings: Settings,
    out: Path,
    on: str = "here",
    progress: Progress = Progress(),  # noqa: B008
) -> dict[str, Any]:
    """Write the memories, ask every arm everything, and return the record, which is stored.

    Raises DataError for files of another shape or too few documents, ModelError when a write
    diverged, ConfigError for another ``on``; what was done before is not done again.
    """
    if on != "here":
        raise ConfigError(f"memories run in this process, not on {on!r}; leave --on out.")
    model, watch = Model.load(settings.model), progress.watch
    place = Path(settings.documents or DOCUMENTS)
    pages = read_pages(place, settings.n_documents, settings.left_out)
    memory = written(out, model, pages, settings, watch)
    bench = Bench(memory, out, {page.document.id: page for page in pages}, settings, watch, {})
    questions = [q for page in pages for q in page.questions]
    strange = _strangers(settings, pages)
    sets = {"questions": questions, "strangers": strange, "near misses": near_misses(bench)}
    answers = {
        name: {
            arm: replies(bench, arm, own, name)
            for arm in settings.arms or ARMS
            if arm in ARMS_OF.get(name, ARMS)
        }
        for name, own in sets.items()
    }
    record = {
        "benchmark": "memories",
        "bench": "memories",
        "settings": asdict(settings),
        "base": {"id": model.name, "digest": model.digest},
        "version": __version__,
        "command": shlex.join(["lore", *sys.argv[1:]]),
        "metric": bench.metric,
        **_shares(bench, sets, answers),
        "routing": _routing(bench, questions, strange),
        "several": {
            **_cached(bench, "several", lambda: _several(bench, questions)),
            **_cached(bench, "routers", lambda: _routers(bench, questions)),
        },
        "seconds": {"writing": _writing(out), "a question": _seconds(bench, questions)},
        "made": time.strftime("%Y-%m-%d"),
    }
    save_json(record, out / RECORD_FILE)
    return record


def _shares(
    bench: Bench,
    sets: Mapping[str, Sequence[Question]],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
) -> dict[str, Any]:
    """Shares by arm, and what follows from them."""
    questions = sets["questions"]
    right = {arm: scores(questions, own, bench.metric) for arm, own in answers["questions"].items()}
    kinds = [q.kind for q in questions]
    accuracy = {
        arm: {
            kind: _share([s for s, own in zip(scores, kinds, strict=True) if kind in (ALL, own)])
            for kind in dict.fromkeys([ALL, *kinds])
        }
        for arm, scores in right.items()
    }
    declined = {
        name: {arm: _share([a.declined for a in own]) for arm, own in answers[name].items()}
        for name in ("strangers", "near misses")
    }
    shares: dict[str, Any] = {"accuracy": accuracy, "declined": declined}
    if {"base", "oracle", "routed", "abstaining", "wrong"} <= right.keys():
        nearest = answers["questions"]["routed"]
        hits = [a.memory == q.document for q, a in zip(questions, nearest, strict=True)]
        shares["five"] = oracle_gap(right, hits)
        shares["routed_of_oracle"] = _ratio(questions, right["routed"], right["oracle"])
    if {"hybrid", "abstaining", "open"} <= right.keys():
        shares["hybrid"] = _hybrid(right)
    return shares


def _share(scores: Sequence[float]) -> dict[str, Any]:
    return asdict(estimate(scores))


def oracle_gap(right: Mapping[str, Sequence[float]], hits: Sequence[bool]) -> dict[str, Any]:
    """Five arms, and how the gap between oracle and routed comes about.

    ``missed`` is lost where another memory was nearest; ``merged`` although the right one was. Both
    are means over all questions: missed + merged = oracle - routed.
    """
    gaps = [a - b for a, b in zip(right["oracle"], right["routed"], strict=True)]
    return {
        **{arm: _share(right[arm]) for arm in FIVE},
        "hit": _share(hits),
        "missed": asdict(mean_interval([0.0 if h else g for g, h in zip(gaps, hits, strict=True)])),
        "merged": asdict(mean_interval([g if h else 0.0 for g, h in zip(gaps, hits, strict=True)])),
    }


def _ratio(
    questions: Sequence[Question], above: Sequence[float], below: Sequence[float]
) -> dict[str, Any]:
    """Mean over mean, with a bootstrap interval over documents; None over a mean of zero."""
    names, at = np.unique([q.document for q in questions], return_inverse=True)
    sums_D2 = np.stack([np.bincount(at, weights=scores) for scores in (above, below)], axis=1)
    total = sums_D2.sum(axis=0)
    if not total[1]:
        return asdict(Estimate(len(questions), None, None, None))
    draws = np.random.default_rng(0).integers(len(names), size=(N_DRAWS, len(names)))
    drawn = sums_D2[draws].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9), [0.025, 0.975])
    return asdict(Estimate(len(questions), float(total[0] / total[1]), float(low), float(high)))


def _hybrid(right: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Hybrid against its better half, on the same questions."""
    half = max(("open", "abstaining"), key=lambda arm: sum(right[arm]))
    both = list(zip(right["hybrid"], right[half], strict=True))
    only_hybrid, only_half = sum(a > b for a, b in both), sum(a < b for a, b in both)
    difference = paired_difference(right["hybrid"], right[half])
    return {
        "better_half": half,
        "difference": asdict(difference),
        "only_hybrid": only_hybrid,
        "only_half": only_half,
        "p": mcnemar(only_hybrid, only_half),
    }


def _routing(
    bench: Bench, questions: Sequence[Question], strange: Sequence[Question]
) -> dict[str, Any]:
    """Share of questions that activate a memory, and the right one; of strangers too."""
    rate, router = bench.settings.false_activation, bench.router
    hits = [bench.chosen(q.text) for q in questions]
    right = [q.document in [h.memory for h in own] for q, own in zip(questions, hits, strict=True)]
    threshold = router.route(questions[0].text, false_activation=rate).threshold
    return {
        "n_keys": len(router.index.keys),
        "threshold": None if threshold is None else asdict(threshold),
        "covered": _share([bool(own) for own in hits]),
        "to_the_right_one": _share(right),
        "several": _share([len(own) > 1 for own in hits]),
        "false_activation": _share([bool(bench.chosen(q.text)) for q in strange]),
    }


def _cached(
    bench: Bench, name: str, make: Callable[[], dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """A measurement with these settings and memories, stored by an earlier run or made now."""
    path = bench.folder / f"{name}.json"
    ids = sorted(bench.memory.names.items())
    key = digest([bench.memory.model.digest, bench.settings.identity, ids])
    stored = read_object(path, "delete it") if path.exists() else {}
    if stored.get("key") != key:
        bench.watch.step(name)
        stored = {"key": key, "shares": make()}
        save_json(stored, path)
    return dict(stored["shares"])


def _several(bench: Bench, questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Two memories for one question: which way of using both loses least."""
    own = _some(questions, bench.settings.n_pairs)
    answers, both = two_memories(bench, own), two_in_one(bench, pairs(bench))
    return {
        "right and nearest other": {
            way: _share(scores(own, each, bench.metric)) for way, each in answers.items()
        },
        "two questions in one": {way: _share(right) for way, right in both.items()},
    }


def _routers(bench: Bench, questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Share of questions whose first memory is the right one, by router."""
    ids = {name: bench.memory.names[name] for name in sorted(bench.pages)}
    own = {
        identity: [e.prompt for e in bench.lesson(name).examples if e.kind == "qa"]
        for name, identity in ids.items()
    }
    adapters = {identity: bench.adapter(name) for name, identity in ids.items()}
    some = [(q.text, ids[q.document]) for q in _some(questions, bench.settings.n_routed)]
    by_name = routers(bench.memory.model, bench.router.index, adapters, own)
    shares = {name: _share(first_right(router, some)) for name, router in by_name.items()}
    return {"first is right": shares}


def _some(questions: Sequence[Question], n: int) -> list[Question]:
    """At most n, evenly spread."""
    return list(questions[:: max(1, len(questions) // n)][:n])


def _writing(folder: Path) -> dict[str, float]:
    """Seconds of all stacks, lessons and training apart."""
    spent = [read_object(path, "delete it") for path in folder.glob("stacks/*/seconds.json")]
    return {part: sum(each[part] for each in spent) for part in ("n", "lessons", "training")}


def _seconds(bench: Bench, questions: Sequence[Question]) -> dict[str, Any]:
    """Seconds of one question at a time, all loaded, by mode; `route` only routes."""
    bench.watch.step("one question at a time, with a clock")
    ways: dict[str, Callable[[Question], object]] = {
        "route": lambda q: bench.memory.route(q.text),
        "base": lambda q: bench.ask([q], [()]),
    }
    for mode in MODES:
        ways[mode] = partial(lambda mode, q: bench.memory.ask(q.text, mode=mode), mode)
    some = _some(questions, bench.settings.n_timed)
    return {
        way: {"n": len(some), "median": median(own), "p90": quantiles(own, n=10)[-1]}
        for way, call in ways.items()
        if len(own := _timed(call, some)) > 1
    }


def _timed(call: Callable[[Question], object], questions: Sequence[Question]) -> list[float]:
    call(questions[0])
    seconds = []
    for question in questions:
        began = time.perf_counter()
        call(question)
        seconds.append(time.perf_counter() - began)
    return seconds


# -- tables --------------------------------------------------------------------------------------


def tables(summary: Summary) -> Iterator[Table]:
    """One row an arm; below it what the benchmark shows, in sentences."""
    kinds = list(next(iter(summary["accuracy"].values())))
    head = ("arm", "what answers", *kinds, "near misses declined", "strangers declined")
    declined = summary["declined"]
    rows = tuple(
        (
            arm,
            ARMS[arm].meaning,
            *(spelt(by_kind[kind]) for kind in kinds),
            spelt(declined["near misses"].get(arm)),
            spelt(declined["strangers"].get(arm)),
        )
        for arm, by_kind in summary["accuracy"].items()
    )
    n = summary["settings"]["n_documents"]
    notes = tuple(_notes(summary))
    yield Table(f"{n} memories", head, rows, notes, stacked=("", "share"), prose=("what answers",))


def _notes(summary: Summary) -> Iterator[str]:
    routing, seconds = summary["routing"], summary["seconds"]
    n_questions = next(iter(summary["accuracy"].values()))[ALL]["n"]
    yield (
        f"{n_questions} questions, {routing['n_keys']} keys: {_with_n(routing['covered'])} "
        f"activate a memory, {_with_n(routing['to_the_right_one'])} the right one; strangers "
        f"{_with_n(routing['false_activation'])}."
    )
    if "routed_of_oracle" in summary:
        yield f"Routed keeps {_with_n(summary['routed_of_oracle'])} of the oracle."
    if "hybrid" in summary:
        own = summary["hybrid"]
        yield (
            f"Hybrid less its better half ({own['better_half']}): "
            f"{spelt(own['difference'], '{:+.3f}')}, {own['only_hybrid']} right in hybrid alone, "
            f"{own['only_half']} there alone, p = {own['p']:.3g}."
        )
    for title, ways in summary["several"].items():
        yield f"{title}: {', '.join(f'{way} {_with_n(share)}' for way, share in ways.items())}."
    medians = (f"{way} {own['median']:.3f} s" for way, own in seconds["a question"].items())
    yield (
        f"Written in {seconds['writing']['training']:.0f} s of training and "
        f"{seconds['writing']['lessons']:.0f} s of lessons; a question, median: "
        f"{', '.join(medians)}."
    )


def _with_n(share: Mapping[str, Any]) -> str:
    return f"{spelt(share, '{:.3f}')} n={share['n']}"


TASK = Task(
    "memories",
    Settings,
    quick,
    run,
    tables,
    flags={
        "n_documents": "--documents",
        "arms": "--arm",
        "documents": "--from",
        "n_strangers": "--n-strangers",
    },
    spreads=False,
)
