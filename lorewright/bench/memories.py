"""Benchmark `memories`: many documents, a memory each, asked without saying which one.

    base        the base alone
    oracle      the memory that holds the answer
    routed      the memory nearest by its keys
    abstaining  the same, or nobody
    wrong       another memory, drawn by seed
    single      all documents in one adapter whose rank is the sum of the memories'
    merged      the memories merged into one adapter
    open        passages found by the keys, the base
    full        the whole right document, the base
    hybrid      what `lore ask` does by default

The questions are in forms that no lesson trains: `known` to the base otherwise, or `new` to it too.
Strangers are questions of the same kind about subjects of no document; near misses ask a document's
own subjects for what it says of others. Pairs are two questions in one, from two documents.

Everything is kept in a folder: the memories (`lore ask` opens them), one file of replies an arm,
record.json. What is there is not done again. Documents are JSON lines: id, title, text and facts,
each with an answer and its questions by kind; the packaged ones are made by pocket/documents.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.files import digest, dump_jsonl, load_jsonl, save_json
from lorewright.knowledge.data import Document, Knowledge
from lorewright.knowledge.lesson import Lesson, LessonConfig, prepare
from lorewright.knowledge.scoring import METRICS, contains
from lorewright.memory.ask import N_PASSAGES, ask_as
from lorewright.memory.folder import lesson_in
from lorewright.memory.memory import Memory
from lorewright.memory.merge import unopposed
from lorewright.memory.route import FALSE_ACTIVATION, FolderRouter
from lorewright.merging.algebra import merge
from lorewright.merging.choosing import merged_by
from lorewright.merging.methods import Evidence
from lorewright.models.model import Model
from lorewright.models.replies import write_about
from lorewright.routing.ask import Answer, Candidate, ask_each
from lorewright.training.config import Diverged, Job, WriteConfig
from lorewright.training.loop import write, write_all
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

HERE = Path(__file__).parent
DOCUMENTS = HERE / "memories.jsonl"
STRANGERS = HERE / "strangers.txt"
ARMS = (
    *("base", "oracle", "routed", "abstaining", "wrong"),
    *("single", "merged", "open", "full", "hybrid"),
)
STACK = 16
"""Memories written at once."""
MERGED = "all, merged"  # no name of a memory has a comma
OWN = ("question", "answer")
"""Fields of a fact that are no kind of question: the plain form is what lessons train."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    n_documents: int = 64
    rank: int = 4
    """Of each memory; the single adapter has n_documents times as much."""
    margin: float = 0.9
    """Recalled means p above this at every token, as in `lore demo`."""
    epochs: int = 60
    false_activation: float = FALSE_ACTIVATION
    merge_method: str = "imitate"
    seed: int = 0
    documents: str = ""
    """A file of documents; empty = the packaged ones."""
    strangers: str = ""
    """A file of questions about other things, one a line; empty = the packaged ones."""
    n_strangers: int = 600
    n_near: int = 256
    n_pairs: int = 128
    """Questions with a rival memory, and questions that are two in one."""
    n_routed: int = 256
    """Questions on which routers are compared."""
    n_timed: int = 32

    def __post_init__(self) -> None:
        """Check ranges; everything else is checked where it is used."""
        if self.n_documents < 2 or self.rank < 1 or self.epochs < 1:
            raise ConfigError(
                f"n_documents is {self.n_documents}, rank {self.rank}, epochs {self.epochs}; give "
                "at least 2 documents, rank 1 and one epoch."
            )


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
    """A document and what is asked about it."""

    document: Document
    questions: tuple[Question, ...]


def read_pages(path: Path, n: int) -> list[Page]:
    """The first n documents of a file. Raises DataError for too few, or rows of another shape."""
    rows = load_jsonl(path)
    if len(rows) < n:
        raise DataError(f"{path} holds {len(rows)} documents; {n} were asked for.")
    try:
        return [_page(row) for row in rows[:n]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds a row without {error}; give id, title, text and facts, each with an "
            "answer and questions by kind."
        ) from error


def _page(row: Mapping[str, Any]) -> Page:
    asked = tuple(
        Question(text, fact["answer"], row["id"], kind)
        for fact in row["facts"]
        for kind, text in sorted(fact.items())
        if kind not in OWN
    )
    return Page(Document(row["id"], row["text"], row["title"]), asked)


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
        with memory.writing():
            began = time.monotonic()
            runs = [_prepared(memory, page, watch) for page in group]
            lessons = [lesson_in(run) for run in runs]
            asked = time.monotonic() - began
            stack = folder / "stacks" / group[0].document.id
            done = _trained(model, lessons, settings, stack, watch)
            took = time.monotonic() - began - asked
            for page, run, adapter in zip(group, runs, done, strict=True):
                _enter(memory, page, run, adapter)
            spent = {"n": len(group), "lessons": asked, "training": took}
            save_json(spent, stack / "seconds.json")
        watch.step(f"{start + len(group)} of {len(todo)} memories written in {took:.0f} s")
    return memory


def _prepared(memory: Memory, page: Page, watch: Watch) -> Path:
    """The run of a page, with its lesson in it."""
    known = Knowledge((page.document,))
    key = digest([known.digest(), memory.model.digest])
    run = memory.folder.run(page.document.id, {"key": key, "source": known.digest()})
    if not (run / "lesson.json").exists():
        watch.step(f"{page.document.id}: asking itself questions")
        model = memory.model
        made = prepare(
            known,
            ask_llm=partial(write_about, model),
            closed_book=model.generate,
            config=LessonConfig(),
            phrasing=model.phrasing,
        )
        save_json(made, run / "lesson.json")
    return run


def _trained(
    model: Model, lessons: Sequence[Lesson], settings: Settings, run: Path, watch: Watch
) -> list[Adapter]:
    """An adapter of each lesson, trained in one stack; progress is that of the first."""
    config = _config(model, settings, settings.rank)
    run.mkdir(parents=True, exist_ok=True)
    found = write_all(
        model,
        [Job(lesson.examples, config) for lesson in lessons],
        run=run,
        on_epoch=lambda job, epoch: None if job else watch.epoch(epoch),
    )
    for done in found:
        if isinstance(done, Diverged):
            raise ModelError(done.why)
    return [done.adapter for done in found if not isinstance(done, Diverged)]


def _config(model: Model, settings: Settings, rank: int) -> WriteConfig:
    lora = LoraConfig(rank, seed=settings.seed)
    return WriteConfig(
        lora=lora,
        lr=suggested_lr(model),
        epochs=settings.epochs,
        margin=settings.margin,
        seed=settings.seed,
    )


def _enter(memory: Memory, page: Page, run: Path, adapter: Adapter) -> None:
    known, identity = Knowledge((page.document,)), adapters.content_id(adapter)
    name = page.document.id
    adapter = replace(adapter, card={"name": name, "source": known.digest()})
    adapters.save(adapter, memory.folder.state_path(identity))
    memory.folder.store_source(known)
    memory.folder.enter(name, identity, source=known.digest(), run=run.name)
    save_json({"memory": name, "adapter": identity}, run / "report.json")


# -- arms ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What the arms are given."""

    memory: Memory
    folder: Path
    pages: Mapping[str, Page]
    settings: Settings
    watch: Watch
    loaded: dict[str, Adapter]

    @property
    def router(self) -> FolderRouter:
        """What the memories' questions are routed with."""
        return self.memory.router.current(self.watch)

    def adapter(self, name: str) -> Adapter:
        """A memory's adapter, loaded once."""
        if name not in self.loaded:
            self.loaded[name] = self.memory.adapter(name)
        return self.loaded[name]

    def ask(
        self, asked: Sequence[tuple[str, Sequence[Candidate]]], mode: str = "closed"
    ) -> list[Answer]:
        """Answers from candidates that are given."""
        return ask_each(self.memory.model, asked, self.adapter, mode=mode)


Arm = Callable[[Setting, Sequence[Question]], list[Answer]]


def base(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """The base alone, with nothing in the prompt."""
    return given.ask([(q.text, ()) for q in questions])


def oracle(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """The memory that holds the answer."""
    return given.ask([(q.text, [Candidate(q.document)]) for q in questions])


def wrong(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """Another memory, drawn at random for every question."""
    rng, names = random.Random(given.settings.seed), sorted(given.pages)
    drawn = [rng.choice([n for n in names if n != q.document]) for q in questions]
    return given.ask([(q.text, [Candidate(n)]) for q, n in zip(questions, drawn, strict=True)])


def routed(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """The memory nearest by its keys, whatever its probability."""
    hits = [given.router.route(q.text).hits[:1] for q in questions]
    return given.ask(
        [
            (q.text, [Candidate(h.memory, h.probability) for h in found])
            for q, found in zip(questions, hits, strict=True)
        ]
    )


def abstaining(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """The memories that the question is for, closed-book; the base where there are none."""
    rate = given.settings.false_activation
    chosen = [given.router.route(q.text, false_activation=rate).chosen for q in questions]
    return given.ask(
        [
            (q.text, [Candidate(h.memory, h.probability) for h in found])
            for q, found in zip(questions, chosen, strict=True)
        ]
    )


def single(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """One adapter for all documents, its rank the sum of the memories'."""
    place = given.folder / "single"
    settings, model = given.settings, given.memory.model
    if not (place / "adapter" / "card.json").exists():
        given.watch.step("writing all documents into one adapter")
        lessons = [lesson_of(given, name) for name in sorted(given.pages)]
        examples = list(dict.fromkeys(e for lesson in lessons for e in lesson.examples))
        config = _config(model, settings, settings.rank * len(given.pages))
        place.mkdir(parents=True, exist_ok=True)
        done = write(model, examples, config, run=place, on_epoch=given.watch.epoch)
        about = {"reason": done.reason, "training": asdict(done.epochs[-1])}
        adapters.save(replace(done.adapter, card=about), place / "adapter")
    return _alone(given, questions, adapters.load(place / "adapter"))


def merged(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """All memories merged into one adapter."""
    if MERGED not in given.loaded:
        names = sorted(given.pages)
        lessons = unopposed([lesson_of(given, name) for name in names])
        own, examples = list(map(given.adapter, names)), [each.examples for each in lessons]
        evidence = Evidence(given.memory.model, examples, watch=given.watch)
        given.loaded[MERGED] = merged_by(given.settings.merge_method, own, evidence)
    return _alone(given, questions, given.loaded[MERGED])


def _alone(given: Setting, questions: Sequence[Question], adapter: Adapter) -> list[Answer]:
    """One adapter for every question."""
    asked = [(q.text, [Candidate("all")]) for q in questions]
    return ask_each(given.memory.model, asked, lambda name: adapter)


def open_book(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """Retrieval without memories: the nearest passages of all documents, read by the base."""
    index = given.router.index
    found = [index.retrieve(q.text, k=N_PASSAGES, kinds=("passage",)) for q in questions]
    read = [tuple(hit.key for hit in hits) for hits in found]
    return given.ask(
        [
            (q.text, [Candidate("", passages=texts)] if texts else [])
            for q, texts in zip(questions, read, strict=True)
        ],
        "open",
    )


def full(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """The whole of the right document, read by the base."""
    texts = {name: page.document.text for name, page in given.pages.items()}
    asked = [(q.text, [Candidate(q.document, source=texts[q.document])]) for q in questions]
    return given.ask(asked, "full")


def hybrid(given: Setting, questions: Sequence[Question]) -> list[Answer]:
    """As `lore ask` answers: routed, abstaining, closed and open book at once."""
    rate = given.settings.false_activation
    texts = [q.text for q in questions]
    return ask_as(given.memory, texts, mode="hybrid", false_activation=rate)


BY_NAME: dict[str, Arm] = {
    **{each.__name__: each for each in (base, oracle, routed, abstaining, wrong, single, merged)},
    "open": open_book,
    "full": full,
    "hybrid": hybrid,
}


def replies(given: Setting, arm: str, questions: Sequence[Question], name: str) -> list[Answer]:
    """An arm's answers to the questions, from its file or made now and kept there."""
    path = given.folder / "replies" / f"{arm}-{name}.jsonl"
    ids = sorted(given.memory.names.items())
    key = digest([asdict(given.settings), ids, [asdict(q) for q in questions]])
    if path.exists():
        head, *rows = load_jsonl(path)
        if head == {"key": key} and len(rows) == len(questions):
            return [_stored(row) for row in rows]
    given.watch.step(f"{name}: {arm}")
    found = BY_NAME[arm](given, questions)
    kept = ("question", "text", "memory", "declined", "confidence", "least", "way", "probability")
    dump_jsonl([{"key": key}, *({k: vars(a)[k] for k in kept} for a in found)], path)
    return found


def _stored(row: Mapping[str, Any]) -> Answer:
    return Answer(**row)


def score(question: Question, answer: Answer, metric: str) -> float:
    """Whether the answer is right."""
    return METRICS[metric](answer.text, (question.answer,))


# -- other questions -----------------------------------------------------------------------------


def lesson_of(given: Setting, name: str) -> Lesson:
    """What a memory was trained on."""
    return given.memory.folder.lesson(given.memory.folder.entry(name))


def near_misses(given: Setting) -> list[Question]:
    """Questions that a document's own words make and that it does not answer, evenly drawn."""
    rng, by_page = random.Random(given.settings.seed), []
    for name in sorted(given.pages):
        probes = [p for p in lesson_of(given, name).probes if p.kind == "unknown"]
        own = [Question(probe.question, "", name, "near") for probe in probes]
        by_page.append(rng.sample(own, len(own)))
    turns = range(max(map(len, by_page)))
    return [own[i] for i in turns for own in by_page if i < len(own)][: given.settings.n_near]


def pairs(given: Setting) -> list[tuple[Question, Question]]:
    """Two questions of different documents that the base's forms know, drawn by seed."""
    rng = random.Random(given.settings.seed)
    kinds = sorted({q.kind for page in given.pages.values() for q in page.questions})
    pool = [q for page in given.pages.values() for q in page.questions if q.kind == kinds[0]]
    found: list[tuple[Question, Question]] = []
    while len(found) < min(given.settings.n_pairs, len(pool)):
        first, second = rng.sample(pool, 2)
        if first.document != second.document:
            found.append((first, second))
    return found


def two_in_one(
    given: Setting, asked: Sequence[tuple[Question, Question]]
) -> dict[str, list[float]]:
    """Whether both answers come back when two questions are asked as one, closed-book.

    `parts`: as `lore ask` does, each part of its own memory; `each`: the whole question of both
    memories, and their replies together.
    """
    texts = [f"{a.text.rstrip('?.')} and {b.text[:1].lower()}{b.text[1:]}" for a, b in asked]
    rate = given.settings.false_activation
    split = ask_as(given.memory, texts, mode="closed", false_activation=rate)
    outputs = {"parts": [answer.text for answer in split]}
    both = given.ask(
        [(t, [Candidate(q.document) for q in pair]) for t, pair in zip(texts, asked, strict=True)]
    )
    outputs["each"] = ["; ".join(r.text for r in answer.replies) for answer in both]
    return {
        way: [
            float(all(contains(text, (q.answer,)) for q in pair))
            for text, pair in zip(said, asked, strict=True)
        ]
        for way, said in outputs.items()
    }


def two_memories(given: Setting, questions: Sequence[Question]) -> dict[str, list[Answer]]:
    """Questions asked of the right memory and of the next nearest at once, three ways.

    `each`: both are asked, the more confident that does not decline speaks; `cat` and `mean`:
    both are merged into one adapter.
    """
    rivals = []
    for q in questions:
        others = (hit.memory for hit in given.router.route(q.text).hits if hit.memory != q.document)
        rivals.append(next(others, next(n for n in sorted(given.pages) if n != q.document)))
    two = list(zip(questions, rivals, strict=True))
    found = {"each": given.ask([(q.text, [Candidate(q.document), Candidate(r)]) for q, r in two])}
    for method in ("cat", "mean"):
        made = {
            f"{q.document}+{r}": merge([given.adapter(q.document), given.adapter(r)], method=method)
            for q, r in two
        }
        asked = [(q.text, [Candidate(f"{q.document}+{r}")]) for q, r in two]
        model, table = given.memory.model, {name: each.adapter for name, each in made.items()}
        found[method] = ask_each(model, asked, table.__getitem__)
    return found
