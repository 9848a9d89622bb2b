"""The memo, reproduced: one document, several conditions, the same probes.

A well-known report wrote a document by next-token loss, saw the loss fall to 0.004 and the recall
stay at 0.000. Here both ways to write stand beside each other and beside reading: part of the
document in the prompt (stable), next-token loss, questions and answers, all of it in the prompt
(full). Questions are on the part that `stable` does not see, in forms that the adapter was never
trained on. Which document, which base and which settings is described in `demos`; this runs what
is described. Finished conditions stay in the folder, and another run goes on from them.
"""

from __future__ import annotations

import io
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from lorewright.errors import ConfigError, ModelError
from lorewright.files import digest, read_object, save_json, slug
from lorewright.knowledge.data import Document, Knowledge, Probe
from lorewright.knowledge.examples import EXAMPLES
from lorewright.knowledge.lesson import LessonConfig, contexts, prepare, texts_of
from lorewright.knowledge.readers.probes import read_probes
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.knowledge.scoring import contains
from lorewright.memory.memory import Memory
from lorewright.memory.verify import ROUTED, routed
from lorewright.models.general import Known
from lorewright.models.model import Model
from lorewright.recall.statistics import estimate
from lorewright.recall.traces import trace
from lorewright.recall.verify import (
    RETAINED,
    SUPPORTED,
    Recall,
    ask,
    known_beforehand,
    still_known,
)
from lorewright.reports.figures.contrast import contrast_figure
from lorewright.reports.progress import shown
from lorewright.reports.results import contrast_table
from lorewright.reports.tables import Rendered
from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.loop import write

N_QUESTIONS = 3
QUICK_EPOCHS, QUICK_UNKNOWN = 2, 4
LINE_WIDTH = 200
PROMPTED = "prompted"
"""The arm of a memory with part of the document in the prompt as well."""


# -- what a demonstration is ------------------------------------------------------------------


@dataclass(frozen=True)
class TextWrite:
    """A condition: the document is written by next-token loss."""

    name: str
    step: str
    """What is printed when it begins."""
    config: Callable[[Model], WriteConfig]
    prompted: bool = False
    """Ask with part of the document in the prompt as well."""
    curve_every: int = 1
    """Recall is taken after so many epochs."""


@dataclass(frozen=True)
class QuestionWrite:
    """A condition: questions and answers are written as a memory, with its whole verdict."""

    name: str
    step: str
    config: Callable[[Model], WriteConfig]
    lesson: LessonConfig
    curve_every: int = 1
    """Recall is taken after so many epochs."""


@dataclass(frozen=True)
class Row:
    """A row of the table: probes of a kind under an arm of a condition."""

    name: str
    meaning: str
    condition: str
    arm: str = "memory"
    kind: str = "paraphrase"
    strict: bool = False
    """Only the stricter probes."""


@dataclass(frozen=True)
class Control:
    """Another memory, for the answers of a wrong one."""

    file: str
    step: str
    config: Callable[[Model], WriteConfig]


@dataclass(frozen=True)
class Demo:
    """A demonstration: a document with probes, conditions, and the rows of its table."""

    title: str
    command: str
    document: str
    """Name of a file in EXAMPLES; `<name>.probes.jsonl` lies beside it."""
    conditions: tuple[TextWrite | QuestionWrite, ...]
    rows: tuple[Row, ...]
    extra: tuple[Row, ...]
    facts: bool = False
    """`<name>.jsonl` beside the document holds the questions that are trained; else the base asks
    itself."""
    control: Control | None = None
    metric: str = "exact_match"
    strict: str = "new-"
    """Ids of the stricter probes begin so."""
    strict_apart: bool = True
    """The stricter probes are not among the others."""
    beside: bool = False
    """Every row has the near misses declined and the general questions retained as well."""
    curve_probes: int = 0
    """Recall after an epoch is on so many probes; 0 = all."""
    quick_facts: int = 0
    """`--quick` writes and asks so many facts; 0 = all."""

    @property
    def memory(self) -> str:
        """Name of the memory that is written."""
        return slug(Path(self.document).stem)


@dataclass(frozen=True)
class Setting:
    """A demonstration on a base: what is written, and the probes."""

    demo: Demo
    model: Model
    document: Document
    knowledge: Knowledge
    probes: tuple[Probe, ...]
    held: tuple[Probe, ...]
    """Probes of the headline."""
    strict: tuple[Probe, ...]
    scaffold: str
    general: tuple[Known, ...]
    folder: Path
    quick: bool

    @property
    def unknown(self) -> list[Probe]:
        """Probes that the document does not answer."""
        return [probe for probe in self.probes if probe.kind == "unknown"]

    def config(self, of: Callable[[Model], WriteConfig]) -> WriteConfig:
        """The settings of a write; few epochs if it is to be quick."""
        config = of(self.model)
        return replace(config, epochs=QUICK_EPOCHS) if self.quick else config

    @property
    def on_curve(self) -> list[Probe]:
        """Probes of the curve, spread over the document."""
        n = self.demo.curve_probes or len(self.held)
        return list(self.held[:: max(1, len(self.held) // n)])


def setting(
    demo: Demo, model: Model, folder: Path, source: Path | None = None, *, quick: bool = False
) -> Setting:
    """Read what a demonstration needs; `source` is a document in place of its own.

    Raises ConfigError for a document without the files that are to lie beside it.
    """
    path, beside, trained = _files(demo, source)
    document, probes = Document.read(path), read_probes(beside)
    knowledge = Knowledge((document,))
    if trained is not None:
        facts = read_knowledge(trained).facts
        knowledge = Knowledge((document,), tuple(replace(f, source=document.id) for f in facts))
    if quick and demo.quick_facts:
        knowledge, probes = _few(knowledge, probes, demo.quick_facts)
    _, scaffold = contexts(Knowledge((document,)))
    unseen = [p for p in probes if p.kind == "paraphrase" and not contains(scaffold, p.answers)]
    strict = [p for p in unseen if p.id.startswith(demo.strict)]
    held = [p for p in unseen if p not in strict] if demo.strict_apart else unseen
    about = texts_of(replace(knowledge, documents=()), probes)
    general = known_beforehand(model, about) if demo.beside else []
    parts = (probes, tuple(held), tuple(strict), scaffold, tuple(general))
    return Setting(demo, model, document, knowledge, *parts, folder, quick)


def _files(demo: Demo, source: Path | None) -> tuple[Path, Path, Path | None]:
    """The document, its probes, and what is trained of it where that is given."""
    path = source or EXAMPLES / demo.document
    probes = _beside(path, ".probes.jsonl", "questions on it that are not trained")
    given = _beside(path, ".jsonl", "questions and answers to train") if demo.facts else None
    return path, probes, given


def _beside(path: Path, suffix: str, what: str) -> Path:
    beside = path.with_name(f"{path.stem}{suffix}")
    if not beside.exists():
        raise ConfigError(
            f"the demo needs {what} beside {path.name}; there is no {beside}; write it as JSON "
            "lines."
        )
    return beside


def _few(
    knowledge: Knowledge, probes: Sequence[Probe], n: int
) -> tuple[Knowledge, tuple[Probe, ...]]:
    """The first n answers with all of their questions, and a few that have none."""
    answers = list(dict.fromkeys(fact.answer for fact in knowledge.facts))[:n]
    facts = tuple(fact for fact in knowledge.facts if fact.answer in answers)
    answered = [probe for probe in probes if {*probe.answers} & {*answers}]
    unknown = [probe for probe in probes if probe.kind == "unknown"][:QUICK_UNKNOWN]
    return replace(knowledge, facts=facts), (*answered, *unknown)


# -- running it -------------------------------------------------------------------------------


def run(
    demo: Demo,
    base: str,
    progress: Console,
    out: Console,
    folder: Path,
    source: Path | None = None,
    *,
    quick: bool = False,
    jobs: int = 1,
) -> dict[str, Any]:
    """Write the document in every condition, print the table, ask three questions, save the record.

    Returns the record that is saved as record.json. Conditions that the folder has finished with
    the same settings are not run again. With two `jobs` writes by next-token loss run in a
    process of their own beside the write of questions. Raises ConfigError when a document of the
    user's own comes without the files that are to lie beside it, ModelError for a base that is not
    there.
    """
    started = time.monotonic()
    step = _stepper(progress, started)
    path, *_ = _files(demo, source)
    model = Model.load(base)
    if demo.beside:
        step(f"{model.name}: which general questions does it answer?")
    on = setting(demo, model, folder, source, quick=quick)
    n_parameters = sum(p.numel() for p in model.network.parameters())
    step(
        f"{model.name}: {n_parameters / 1e6:.1f} million parameters, frozen; {path.name}: "
        f"{len(on.document.text.split())} words; {len(on.held)} probes in forms the adapter never "
        "saw"
    )
    places = {
        each.name: folder / "conditions" / f"{slug(each.name)}-{_key(on, each)}.json"
        for each in demo.conditions
    }
    todo = [each for each in demo.conditions if not _finished(places[each.name], on, each)]
    earlier = 0.0
    for condition in demo.conditions:
        if condition not in todo:
            step(f"{condition.name}: finished before, in {places[condition.name]}")
            earlier += _stored(places[condition.name])["seconds"]
    apart = [each for each in todo if isinstance(each, TextWrite)] if jobs > 1 else []
    apart = apart if len(apart) < len(todo) else apart[1:]
    tasks = [(each, places[each.name]) for each in apart]
    with _shared_threads(jobs):
        with _beside_this(step, tasks, demo, base, folder, source, quick):
            for condition in todo:
                if condition not in apart:
                    step(condition.step)
                    _do(progress, step, on, condition, places[condition.name])
        done = {name: _stored(place) for name, place in places.items()}
        record = _record(on, done)
        record["seconds"] = round(earlier + time.monotonic() - started, 1)
        out.print(Rendered(contrast_table(record)))
        _ask_some(out, on)
    save_json(record, folder / "record.json")
    _figures(out, record, folder)
    return record


Tasks = Sequence[tuple[TextWrite | QuestionWrite, Path]]
"""Conditions with the files of their records."""


@contextmanager
def _shared_threads(jobs: int) -> Iterator[None]:
    """Give this process its share of the threads while the block runs.

    To its end: threads that wait for each other on cores that others use stand still.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(max(1, n_threads // jobs))
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def _beside_this(step: Callable[[str], None], tasks: Tasks, *about: Any) -> Iterator[None]:
    """Run some conditions in another process while the block runs, on as many threads as this one.

    Raises what was raised there, ModelError when that process died.
    """
    if not tasks:
        yield
        return
    failed = list[BaseException]()
    spawning = multiprocessing.get_context("spawn")
    lines = spawning.SimpleQueue()

    def show() -> None:
        while (line := lines.get()) is not None:
            if isinstance(line, BaseException):
                failed.append(line)
            else:
                step(line)

    args = (lines, torch.get_num_threads(), tasks, *about)
    process = spawning.Process(target=_in_a_process, args=args, daemon=True)
    showing = threading.Thread(target=show, daemon=True)
    process.start()
    showing.start()
    try:
        yield
        process.join()
    finally:
        process.terminate()
        process.join()
        lines.put(None)
        showing.join()
    if failed:
        raise failed[0]
    if process.exitcode:
        raise ModelError(
            f"the process beside this one ended with {process.exitcode}; perhaps there is too "
            "little memory; run the demo again, with --jobs 1."
        )


def _in_a_process(
    lines: SimpleQueue[Any],
    n_threads: int,
    tasks: Tasks,
    demo: Demo,
    base: str,
    folder: Path,
    source: Path | None,
    quick: bool,
) -> None:
    """Run conditions in this process, whose progress goes to the one that shows it."""
    torch.set_num_threads(n_threads)
    try:
        on = setting(demo, Model.load(base), folder, source, quick=quick)
        for condition, place in tasks:
            step = partial(_send, lines, f"{condition.name}: ")
            step(condition.step)
            plain = Console(file=_Lines(step), width=LINE_WIDTH)
            _do(plain, step, on, condition, place)
    except Exception as error:  # noqa: BLE001 - raised again in the process that shows it
        lines.put(error)


def _send(lines: SimpleQueue[Any], prefix: str, text: str) -> None:
    lines.put(prefix + text)


class _Lines(io.StringIO):
    """A stream that hands on whole lines."""

    def __init__(self, send: Callable[[str], None]) -> None:
        super().__init__()
        self.send = send
        self.rest = ""

    def write(self, text: str) -> int:
        *whole, self.rest = (self.rest + text).split("\n")
        for line in filter(None, whole):
            self.send(line)
        return len(text)


def _do(
    progress: Console,
    step: Callable[[str], None],
    on: Setting,
    condition: TextWrite | QuestionWrite,
    place: Path,
) -> None:
    """Run a condition and store its record."""
    began = time.monotonic()
    curve = Curve(place.with_suffix(".curve.json"))
    if isinstance(condition, TextWrite):
        record = _write_text(progress, step, on, condition, curve)
    else:
        record = _write_questions(progress, step, on, condition, curve)
    record |= {"curve": curve.to_json(), "seconds": round(time.monotonic() - began, 1)}
    save_json(record, place)
    curve.path.unlink(missing_ok=True)


def _stored(place: Path) -> dict[str, Any]:
    return read_object(place, "delete it, and run the demo again")


def _memory_folder(on: Setting) -> Path:
    return on.folder / f"memory-{on.model.digest[:8]}"


def _key(on: Setting, condition: TextWrite | QuestionWrite) -> str:
    """What a condition's record depends on, in a few digits."""
    how: list[Any] = [condition.name, on.config(condition.config).to_json(), on.demo.metric]
    how += [asdict(condition.lesson)] if isinstance(condition, QuestionWrite) else []
    how += [on.knowledge.digest(), [asdict(p) for p in on.probes], on.model.digest]
    return digest([*how, [k.question for k in on.general], condition.curve_every])[:12]


def _finished(place: Path, on: Setting, condition: TextWrite | QuestionWrite) -> bool:
    """Whether a condition has its record, and its memory where it leaves one."""
    if not place.exists() or isinstance(condition, TextWrite):
        return place.exists()
    where = _memory_folder(on)
    return where.is_dir() and on.demo.memory in Memory.open(where, on.model).names


def _write_text(
    progress: Console,
    step: Callable[[str], None],
    on: Setting,
    condition: TextWrite,
    curve: Curve,
) -> dict[str, Any]:
    """Write the text by next-token loss and ask; nothing is stored."""
    model, demo = on.model, on.demo
    lesson = prepare(
        Knowledge((on.document,)),
        ask_llm=_nobody,
        closed_book=_nobody,
        config=LessonConfig(views=("verbatim",), negatives=0),
        given_probes=on.held,
    )
    config = on.config(condition.config)
    with shown(progress) as show:
        on_epoch = curve.following(model, on.on_curve, show.epoch, condition.curve_every)
        written = write(
            model, lesson.examples, config, on_epoch=on_epoch, on_note=step, advance=show.advance
        )
    with shown(progress) as show:
        asking = partial(
            ask,
            model,
            memory=written.adapter,
            metric=demo.metric,
            watch=replace(show, step=step),
            title=f"asking the memory of {condition.name}",
        )
        arms = {"memory": asking([*on.held, *(on.unknown if demo.beside else [])])}
        if condition.prompted:
            arms[PROMPTED] = asking([replace(p, context=on.scaffold) for p in on.held])
        if on.general:
            step("asking it general questions")
            arms["memory"] += still_known(model, written.adapter, on.general)
    epochs = written.epochs
    return {
        "arms": _plain(arms),
        "final_loss": epochs[-1].loss_nats,
        "reason": written.reason,
        "epochs": len(epochs),
        "steps": len(epochs) * -(-len(lesson.examples) // config.batch_size),
        "n_examples": len(lesson.examples),
        "notes": list(lesson.notes),
    }


def _write_questions(
    progress: Console,
    step: Callable[[str], None],
    on: Setting,
    condition: QuestionWrite,
    curve: Curve,
) -> dict[str, Any]:
    """Write questions and answers into a memory; its verdict asks the base and its controls."""
    memory, control = Memory.open(_memory_folder(on), on.model), on.demo.control
    if control is not None:
        step(control.step)
        rows = read_knowledge(EXAMPLES / control.file)
        name = slug(Path(control.file).stem)
        memory.write(rows, name=name, config=on.config(control.config))
    with shown(progress) as show:
        on_epoch = curve.following(on.model, on.on_curve, show.epoch, condition.curve_every)
        outcome = memory.write(
            on.knowledge,
            name=on.demo.memory,
            config=on.config(condition.config),
            lesson=condition.lesson,
            probes=on.probes,
            metric=on.demo.metric,
            watch=replace(show, step=step, epoch=on_epoch),
        )
    arms = dict(outcome.report.arms)
    if any(row.arm == ROUTED for row in on.demo.rows):
        arms[ROUTED] = routed(memory, on.demo.memory, outcome.report)
    return {
        "arms": _plain(arms),
        "final_loss": curve.loss[-1],
        "reason": outcome.reason,
        "epochs": outcome.epochs,
        "n_examples": outcome.n_examples,
        "trained": outcome.to_json()["trained"],
        "notes": list(outcome.notes),
    }


def _plain(arms: Mapping[str, Sequence[Recall]]) -> dict[str, list[dict[str, Any]]]:
    return {arm: [asdict(each) for each in rows] for arm, rows in arms.items()}


def _nobody(prompts: list[str]) -> list[str]:
    assert not prompts, "the next-token lesson asks no language model"
    return []


def _stepper(console: Console, started: float) -> Callable[[str], None]:
    def step(text: str) -> None:
        console.print(
            f"[dim]{time.monotonic() - started:5.0f} s[/]  {escape(text)}",
            highlight=False,
            soft_wrap=True,
        )

    return step


@dataclass
class Curve:
    """Loss and held-out recall by epoch; on disk, as a write that resumes repeats its epochs."""

    path: Path
    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, list[Any]]:
        """As plain data."""
        return {"epoch": self.epoch, "loss": self.loss, "recall": self.recall}

    def following(
        self, model: Model, probes: Sequence[Probe], show: Callable[[Epoch], None], every: int = 1
    ) -> Callable[[Epoch], None]:
        """What fills the curve: recall by teacher-forced argmax at every token, now and then."""
        rows = [model.render(probe.question, probe.answers[0]) for probe in probes]
        known: dict[str, list[Any]] = {}
        if self.path.exists():
            known = _stored(self.path)

        def on_epoch(epoch: Epoch) -> None:
            show(epoch)
            complete = epoch.certified and epoch.n_recalled == epoch.n_examples
            if epoch.epoch != 1 and epoch.epoch % every and not complete:
                return
            self.epoch.append(epoch.epoch)
            self.loss.append(round(epoch.loss_nats, 5))
            if epoch.epoch in known.get("epoch", ()):
                recall = known["recall"][known["epoch"].index(epoch.epoch)]
            else:
                recall = round(sum(t.exact for t in trace(model, rows)) / len(rows), 4)
            self.recall.append(recall)
            save_json(self.to_json(), self.path)

        return on_epoch


# -- what is shown ----------------------------------------------------------------------------


def _record(on: Setting, done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record of all conditions, with the table's rows."""
    demo = on.demo
    held, strict = ({probe.id for probe in probes} for probes in (on.held, on.strict))
    writes = {f"write: {name}": record for name, record in done.items()}

    def share(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any] | None:
        of_kind = [r["score"] for r in rows if r["kind"] == kind and r["score"] is not None]
        return estimate(of_kind).to_json()

    def filled(row: Row) -> dict[str, Any]:
        ids = strict if row.strict else held
        rows = [
            r
            for r in done[row.condition]["arms"].get(row.arm, ())
            if r["kind"] != "paraphrase" or r["probe_id"] in ids
        ]
        loss = writes[row.name]["final_loss"] if row.name in writes else None
        about = {"name": row.name, "meaning": row.meaning, "final_loss": loss}
        if demo.beside and not row.strict:
            n_general = sum(r["kind"] == RETAINED for r in rows)
            about["declined"] = share(rows, "unknown")
            about["retained"] = share(rows, RETAINED) if n_general else None
        return {**about, **(share(rows, row.kind) or {})}

    def there_are(row: Row) -> bool:
        return row.arm not in (SUPPORTED, ROUTED) or row.arm in done[row.condition]["arms"]

    return {
        "title": demo.title,
        "base": {"id": on.model.name, "digest": on.model.digest},
        "n_probes": len(on.held),
        "rows": [filled(row) for row in demo.rows if there_are(row)],
        "extra": [filled(row) for row in demo.extra if there_are(row)],
        "outcomes": {name: record["arms"] for name, record in done.items()},
        "curves": {name: record["curve"] for name, record in done.items()},
        "commands": [demo.command],
        "notes": [note for record in done.values() for note in record["notes"]],
        "conditions": {
            name: {k: v for k, v in record.items() if k not in ("arms", "curve", "notes")}
            for name, record in done.items()
        },
        "quick": on.quick,
    }


def _ask_some(out: Console, on: Setting) -> None:
    """Three questions on the document, from three places, then one that it does not answer."""
    held, memory = list(on.held), Memory.open(_memory_folder(on), on.model)
    spread = (
        [held[len(held) * i // N_QUESTIONS + 1] for i in range(N_QUESTIONS)]
        if len(held) > N_QUESTIONS
        else held
    )
    out.print("\nAnswers of the memory, with nothing in the prompt:")
    for probe in [*spread, *on.unknown[-1:]]:
        answer = memory.ask(probe.question, on.demo.memory, mode="closed")
        truth = probe.answers[0] if probe.answers else "not in the document"
        out.print(
            f"  {probe.question}\n    [b]{escape(answer.text)}[/]  "
            f"[dim]({truth}; mean token probability {answer.confidence:.2f})[/]",
            highlight=False,
        )


def _figures(out: Console, record: dict[str, Any], folder: Path) -> None:
    if find_spec("matplotlib") is None:
        out.print("No figure: matplotlib is not installed (pip install 'lorewright[figures]').")
        return
    for name, dark in (
        ("contrast.svg", False),
        ("contrast.png", False),
        ("contrast-dark.svg", True),
    ):
        contrast_figure(record, folder / name, dark=dark)
    out.print(
        f"\nRecord and figure: {folder / 'record.json'}, {folder / 'contrast.png'}",
        highlight=False,
        soft_wrap=True,
    )
