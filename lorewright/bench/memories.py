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

 Documents are JSON lines: id, title, text and facts,
each with an answer and its questions by kind; the packaged ones are made by pocket/documents.py.
"""

from __future__ import annotations

import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from lorewright import __version__
from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.bench.routers import first_right, routers
from lorewright.bench.tables import spelt
from lorewright.bench.task import Progress, Summary, Task
from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.files import digest, dump_jsonl, load_jsonl, read_object, read_text, save_json
from lorewright.knowledge.data import Document, Knowledge
from lorewright.knowledge.lesson import Lesson, LessonConfig, prepare
from lorewright.knowledge.scoring import METRICS, contains
from lorewright.memory.ask import N_PASSAGES, ask_as
from lorewright.memory.folder import lesson_in
from lorewright.memory.memory import Memory
from lorewright.memory.merge import unopposed
from lorewright.memory.route import FALSE_ACTIVATION, FolderRouter
from lorewright.memory.verify import usual_metric
from lorewright.merging.algebra import merge
from lorewright.merging.choosing import merged_by
from lorewright.merging.methods import Evidence
from lorewright.models.model import Model
from lorewright.models.replies import write_about
from lorewright.recall.statistics import mcnemar, mean_interval, paired_difference, wilson
from lorewright.reports.tables import Table
from lorewright.routing.ask import Answer, Candidate, ask_each
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
    "strangers": ("base", "routed", "abstaining", "single", "merged", "open", "hybrid"),
    "near misses": (
        *("base", "oracle", "abstaining", "single", "merged", "open", "full", "hybrid"),
    ),
}
"""Arms that also answer other questions than those on the documents."""
FIVE = ("base", "oracle", "routed", "abstaining", "wrong")
ALL = "all"
N_DRAWS = 2000
STACK = 16
"""Memories written at once."""
MERGED = "all, merged"  # no name of a memory has a comma
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
    """A file of documents; empty = the packaged ones."""
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


def read_pages(path: Path, n: int) -> list[Page]:
    """The first n documents of a file. Raises DataError for too few, or rows of another shape."""
    rows = load_jsonl(path)
    if len(rows) < n:
        raise DataError(
            f"{path} holds {len(rows)} documents; {n} are needed; give more or lower --documents."
        )
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
            asking = time.monotonic() - began
            stack = folder / "stacks" / group[0].document.id
            adapters_N = _trained(model, lessons, settings, stack, watch)
            training = time.monotonic() - began - asking
            for page, run, adapter in zip(group, runs, adapters_N, strict=True):
                _enter(memory, page, run, adapter)
            spent = {"n": len(group), "lessons": asking, "training": training}
            save_json(spent, stack / "seconds.json")
        watch.step(f"{start + len(group)} of {len(todo)} memories written in {training:.0f} s")
    return memory


def _prepared(memory: Memory, page: Page, watch: Watch) -> Path:
    """The run of a page, with its lesson in it."""
    knowledge = Knowledge((page.document,))
    key = digest([knowledge.digest(), memory.model.digest])
    run = memory.folder.run(page.document.id, {"key": key, "source": knowledge.digest()})
    if not (run / "lesson.json").exists():
        watch.step(f"{page.document.id}: asking itself questions")
        model = memory.model
        lesson = prepare(
            knowledge,
            ask_llm=partial(write_about, model),
            closed_book=model.generate,
            config=LessonConfig(),
            phrasing=model.phrasing,
        )
        save_json(lesson, run / "lesson.json")
    return run


def _trained(
    model: Model, lessons: Sequence[Lesson], settings: Settings, run: Path, watch: Watch
) -> list[Adapter]:
    """An adapter of each lesson, trained in one stack; progress is that of the first."""
    config = _config(model, settings, settings.rank)
    run.mkdir(parents=True, exist_ok=True)
    results = write_all(
        model,
        [Job(lesson.examples, config) for lesson in lessons],
        run=run,
        on_epoch=lambda job, epoch: None if job else watch.epoch(epoch),
    )
    for result in results:
        if isinstance(result, Diverged):
            raise ModelError(result.why)
    return [result.adapter for result in results if not isinstance(result, Diverged)]


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
    knowledge, identity = Knowledge((page.document,)), adapters.content_id(adapter)
    name = page.document.id
    adapter = replace(adapter, card={"name": name, "source": knowledge.digest()})
    adapters.save(adapter, memory.folder.state_path(identity))
    memory.folder.store_source(knowledge)
    memory.folder.enter(name, identity, source=knowledge.digest(), run=run.name)
    save_json({"memory": name, "adapter": identity}, run / "report.json")


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

    def adapter(self, name: str) -> Adapter:
        """A memory's adapter, loaded once."""
        if name not in self.loaded:
            self.loaded[name] = self.memory.adapter(name)
        return self.loaded[name]

    def ask(
        self, pairs: Sequence[tuple[str, Sequence[Candidate]]], mode: str = "closed"
    ) -> list[Answer]:
        """Answers to questions, each from its candidates."""
        return ask_each(self.memory.model, pairs, self.adapter, mode=mode)


Arm = Callable[[Bench, Sequence[Question]], list[Answer]]


def base(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """The base alone, with nothing in the prompt."""
    return bench.ask([(q.text, ()) for q in questions])


def oracle(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """The memory that holds the answer."""
    return bench.ask([(q.text, [Candidate(q.document)]) for q in questions])


def wrong(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """Another memory, drawn at random for every question."""
    rng, names = random.Random(bench.settings.seed), sorted(bench.pages)
    drawn = [rng.choice([n for n in names if n != q.document]) for q in questions]
    return bench.ask([(q.text, [Candidate(n)]) for q, n in zip(questions, drawn, strict=True)])


def routed(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """The memory nearest by its keys, whatever its probability."""
    return _with_hits(bench, questions, [bench.router.route(q.text).hits[:1] for q in questions])


def abstaining(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """The memories that the question is for, closed-book; the base where there are none."""
    rate = bench.settings.false_activation
    chosen = [bench.router.route(q.text, false_activation=rate).chosen for q in questions]
    return _with_hits(bench, questions, chosen)


def _with_hits(
    bench: Bench, questions: Sequence[Question], hits: Sequence[Sequence[Hit]]
) -> list[Answer]:
    pairs = zip(questions, hits, strict=True)
    return bench.ask(
        [(q.text, [Candidate(h.memory, h.probability) for h in own]) for q, own in pairs]
    )


def single(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """One adapter for all documents, its rank the sum of the memories'."""
    place = bench.folder / "single"
    settings, model = bench.settings, bench.memory.model
    if not (place / "adapter" / "card.json").exists():
        bench.watch.step("writing all documents into one adapter")
        lessons = [lesson_of(bench, name) for name in sorted(bench.pages)]
        examples = list(dict.fromkeys(e for lesson in lessons for e in lesson.examples))
        config = _config(model, settings, settings.rank * len(bench.pages))
        place.mkdir(parents=True, exist_ok=True)
        result = write(model, examples, config, run=place, on_epoch=bench.watch.epoch)
        about = {"reason": result.reason, "training": asdict(result.epochs[-1])}
        adapters.save(replace(result.adapter, card=about), place / "adapter")
    return _alone(bench, questions, adapters.load(place / "adapter"))


def merged(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """All memories merged into one adapter."""
    if MERGED not in bench.loaded:
        names = sorted(bench.pages)
        lessons = unopposed([lesson_of(bench, name) for name in names])
        own, examples = list(map(bench.adapter, names)), [each.examples for each in lessons]
        evidence = Evidence(bench.memory.model, examples, watch=bench.watch)
        bench.loaded[MERGED] = merged_by(bench.settings.merge_method, own, evidence)
    return _alone(bench, questions, bench.loaded[MERGED])


def _alone(bench: Bench, questions: Sequence[Question], adapter: Adapter) -> list[Answer]:
    """One adapter for every question."""
    pairs = [(q.text, [Candidate("all")]) for q in questions]
    return ask_each(bench.memory.model, pairs, lambda name: adapter)


def open_book(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """Retrieval without memories: the nearest passages of all documents, read by the base."""
    index = bench.router.index
    pairs = []
    for q in questions:
        hits = index.retrieve(q.text, k=N_PASSAGES, kinds=("passage",))
        passages = tuple(hit.key for hit in hits)
        pairs.append((q.text, [Candidate("", passages=passages)] if passages else []))
    return bench.ask(pairs, "open")


def full(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """The whole of the right document, read by the base."""
    texts = {name: page.document.text for name, page in bench.pages.items()}
    pairs = [(q.text, [Candidate(q.document, source=texts[q.document])]) for q in questions]
    return bench.ask(pairs, "full")


def hybrid(bench: Bench, questions: Sequence[Question]) -> list[Answer]:
    """As `lore ask` answers: routed, abstaining, closed and open book at once."""
    rate = bench.settings.false_activation
    texts = [q.text for q in questions]
    return ask_as(bench.memory, texts, mode="hybrid", false_activation=rate)


ARMS: dict[str, Arm] = {
    "base": base,
    "oracle": oracle,
    "routed": routed,
    "abstaining": abstaining,
    "wrong": wrong,
    "single": single,
    "merged": merged,
    "open": open_book,
    "full": full,
    "hybrid": hybrid,
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
    answers = ARMS[arm](bench, questions)
    fields = ("question", "text", "memory", "declined", "confidence", "least", "way", "probability")
    dump_jsonl([{"key": key}, *({k: vars(a)[k] for k in fields} for a in answers)], path)
    return answers


def score(question: Question, answer: Answer, metric: str) -> float:
    """Whether the answer is right."""
    return METRICS[metric](answer.text, (question.answer,))


# -- other questions -----------------------------------------------------------------------------


def lesson_of(bench: Bench, name: str) -> Lesson:
    """What a memory was trained on."""
    return bench.memory.folder.lesson(bench.memory.folder.entry(name))


def near_misses(bench: Bench) -> list[Question]:
    """Questions that a document's own words make and that it does not answer, evenly drawn."""
    rng, by_page = random.Random(bench.settings.seed), []
    for name in sorted(bench.pages):
        probes = [p for p in lesson_of(bench, name).probes if p.kind == "unknown"]
        own = [Question(probe.question, "", name, "near") for probe in probes]
        by_page.append(rng.sample(own, len(own)))
    evenly = zip_longest(*by_page)
    return [q for row in evenly for q in row if q is not None][: bench.settings.n_near]


def pairs(bench: Bench) -> list[tuple[Question, Question]]:
    """Pairs of questions on different documents, of the kind that the base knows, drawn by seed."""
    rng = random.Random(bench.settings.seed)
    kinds = sorted({q.kind for page in bench.pages.values() for q in page.questions})
    pool = [q for page in bench.pages.values() for q in page.questions if q.kind == kinds[0]]
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
    texts = [f"{a.text.rstrip('?.')} and {b.text[:1].lower()}{b.text[1:]}" for a, b in together]
    rate = bench.settings.false_activation
    split = ask_as(bench.memory, texts, mode="closed", false_activation=rate)
    outputs = {"parts": [answer.text for answer in split]}
    both = bench.ask(
        [
            (t, [Candidate(q.document) for q in pair])
            for t, pair in zip(texts, together, strict=True)
        ]
    )
    outputs["each"] = ["; ".join(r.text for r in answer.replies) for answer in both]
    return {
        way: [
            float(all(contains(text, (q.answer,)) for q in pair))
            for text, pair in zip(replies, together, strict=True)
        ]
        for way, replies in outputs.items()
    }


def two_memories(bench: Bench, questions: Sequence[Question]) -> dict[str, list[Answer]]:
    """Questions put to the right memory and to the next nearest at once, three ways.

    `each`: both answer, the more confident that does not decline speaks; `cat` and `mean`:
    both are merged into one adapter.
    """
    rivals = []
    for q in questions:
        others = (hit.memory for hit in bench.router.route(q.text).hits if hit.memory != q.document)
        rivals.append(next(others, next(n for n in sorted(bench.pages) if n != q.document)))
    two = list(zip(questions, rivals, strict=True))
    answers = {"each": bench.ask([(q.text, [Candidate(q.document), Candidate(r)]) for q, r in two])}
    for method in ("cat", "mean"):
        merges = {
            f"{q.document}+{r}": merge([bench.adapter(q.document), bench.adapter(r)], method=method)
            for q, r in two
        }
        pairs = [(q.text, [Candidate(f"{q.document}+{r}")]) for q, r in two]
        table = {name: each.adapter for name, each in merges.items()}
        answers[method] = ask_each(bench.memory.model, pairs, table.__getitem__)
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
    pages = read_pages(Path(settings.documents or DOCUMENTS), settings.n_documents)
    strangers = read_text(Path(settings.strangers or STRANGERS)).splitlines()
    memory = written(out, model, pages, settings, watch)
    bench = Bench(memory, out, {page.document.id: page for page in pages}, settings, watch, {})
    questions = [q for page in pages for q in page.questions]
    strange = [Question(text, "", "", "stranger") for text in strangers[: settings.n_strangers]]
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
        "metric": usual_metric(model),
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
    questions, metric = sets["questions"], usual_metric(bench.memory.model)
    right = {
        arm: [score(q, a, metric) for q, a in zip(questions, own, strict=True)]
        for arm, own in answers["questions"].items()
    }
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
    """Mean with n and interval: Wilson's of zeros and ones, else a bootstrap."""
    if all(value in (0, 1) for value in scores):
        return asdict(wilson(round(sum(scores)), len(scores)))
    return asdict(mean_interval(scores))


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
    names = sorted({q.document for q in questions})
    sums = np.zeros((len(names), 2))
    for q, a, b in zip(questions, above, below, strict=True):
        sums[names.index(q.document)] += (a, b)
    total = sums.sum(axis=0)
    if not total[1]:
        return {"n": len(questions), "mean": None, "low": None, "high": None}
    draws = np.random.default_rng(0).integers(len(names), size=(N_DRAWS, len(names)))
    drawn = sums[draws].sum(axis=1)
    ratios = drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    mean = float(total[0] / total[1])
    return {"n": len(questions), "mean": mean, "low": float(low), "high": float(high)}


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

    def chosen(text: str) -> list[Any]:
        return list(router.route(text, false_activation=rate).chosen)

    hits = [chosen(q.text) for q in questions]
    right = [q.document in [h.memory for h in own] for q, own in zip(questions, hits, strict=True)]
    threshold = router.route(questions[0].text, false_activation=rate).threshold
    return {
        "n_keys": len(router.index.keys),
        "threshold": None if threshold is None else asdict(threshold),
        "covered": _share([bool(own) for own in hits]),
        "to_the_right_one": _share(right),
        "several": _share([len(own) > 1 for own in hits]),
        "false_activation": _share([bool(chosen(q.text)) for q in strange]),
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
    metric = usual_metric(bench.memory.model)
    own = _some(questions, bench.settings.n_pairs)
    answers = two_memories(bench, own)
    both = two_in_one(bench, pairs(bench))
    return {
        "right and nearest other": {
            way: _share([score(q, a, metric) for q, a in zip(own, replies, strict=True)])
            for way, replies in answers.items()
        },
        "two questions in one": {way: _share(scores) for way, scores in both.items()},
    }


def _routers(bench: Bench, questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Share of questions whose first memory is the right one, by router."""
    index = bench.router.index
    ids = {name: bench.memory.names[name] for name in bench.pages}
    own = {
        ids[key]: [e.prompt for e in lesson_of(bench, key).examples if e.kind == "qa"]
        for key in sorted(ids)
    }
    adapters = {ids[name]: bench.adapter(name) for name in sorted(ids)}
    some = [(q.text, ids[q.document]) for q in _some(questions, bench.settings.n_routed)]
    by_name = routers(bench.memory.model, index, adapters, own)
    return {
        "first is right": {
            name: _share(first_right(router, some)) for name, router in by_name.items()
        }
    }


def _some(questions: Sequence[Question], n: int) -> list[Question]:
    """At most n, evenly spread."""
    return list(questions[:: max(1, len(questions) // n)][:n])


def _writing(folder: Path) -> dict[str, float]:
    """Seconds of all stacks, lessons and training apart."""
    spent = [read_object(path, "delete it") for path in folder.glob("stacks/*/seconds.json")]
    return {part: sum(each[part] for each in spent) for part in ("n", "lessons", "training")}


def timed(bench: Bench, questions: Sequence[Question]) -> dict[str, list[float]]:
    """Seconds of one question at a time, all loaded, by mode; `route` only routes."""
    ask, route = bench.memory.ask, bench.memory.route
    ways: dict[str, Callable[[str], object]] = {
        "route": route,
        "base": lambda text: ask_each(bench.memory.model, [(text, ())], bench.adapter),
        **{mode: partial(ask, mode=mode) for mode in ("closed", "open", "hybrid", "full")},
    }
    seconds: dict[str, list[float]] = {}
    for way, call in ways.items():
        call(questions[0].text)
        seconds[way] = []
        for question in questions:
            began = time.perf_counter()
            call(question.text)
            seconds[way].append(time.perf_counter() - began)
    return seconds


def _seconds(bench: Bench, questions: Sequence[Question]) -> dict[str, Any]:
    bench.watch.step("one question at a time, with a clock")
    seconds = timed(bench, _some(questions, bench.settings.n_timed))
    return {
        way: {"n": len(own), "median": median(own), "p90": quantiles(own, n=10)[-1]}
        for way, own in seconds.items()
        if len(own) > 1
    }


# -- tables --------------------------------------------------------------------------------------

MEANING = {
    "base": "the base alone",
    "oracle": "the memory that holds the answer",
    "routed": "the memory nearest by its keys",
    "abstaining": "the same, or the base",
    "wrong": "another memory",
    "single": "one adapter of the summed rank for all",
    "merged": "all memories merged",
    "open": "passages, no memory",
    "full": "the right document in the prompt",
    "hybrid": "memory and passages: `lore ask`",
}


def tables(summary: Summary) -> Iterator[Table]:
    """One row an arm; below it what the benchmark shows, in sentences."""
    kinds = list(next(iter(summary["accuracy"].values())))
    head = ("arm", "what answers", *kinds, "near misses declined", "strangers declined")
    declined = summary["declined"]
    rows = tuple(
        (
            arm,
            MEANING[arm],
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
)
