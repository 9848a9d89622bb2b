"""One write of a benchmark of methods: stored, read back, proved, and put to the question alone.

A spec says how it is written, on one line:

    NAME [@SIZE] [/TARGET] [*FACTOR] [:SECONDSs]

    gradient@8              a LoRA adapter of rank 8
    gradient@1/down_proj    rank 1 in the down projections alone
    prompt@16*0.3           16 vectors, trained at 0.3 times the method's usual rate
    gradient@8:1s           a training that ends after the first epoch that is over at 1 s

Questions are strict: the state was saved, read back from disk and switched on, nothing else of
the write is in memory, and the prompt holds the question.

Knows writers and questions; nothing of sweeps.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.adapters.config import LoraConfig
from lorewright.bench.kitted import changed
from lorewright.bench.sources import Source, shuffled, sources
from lorewright.errors import AdapterError, ConfigError, LorewrightError, ModelError
from lorewright.knowledge.data import Document, Knowledge
from lorewright.knowledge.lesson import Lesson, LessonConfig
from lorewright.knowledge.scoring import METRICS, is_declined
from lorewright.memory.verify import usual_metric
from lorewright.memory.write import lesson_for
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall.verify import known_beforehand
from lorewright.training.config import WriteConfig
from lorewright.training.watch import Watch
from lorewright.writers.kit import Kit
from lorewright.writers.learned import Learned
from lorewright.writers.methods import LEARNED, load_state, usual_lr, writer_of
from lorewright.writers.tensors import KIND
from lorewright.writers.writer import Cost, Material, State, prove

OWN, SHUFFLED, BLANK = "own", "shuffled", "blank"
NEGATIVES = 0.5
"""Questions that are trained to be declined, as a share of those with an answer."""
N_DECLINED, N_RETAINED, N_PAGE = 8, 12, 8
"""At most so many questions of either kind, and facts of the page that is to be read."""
ANSWER_TOKENS = 24
NEUTRAL = Knowledge((Document("neutral", "This page was left empty on purpose."),))
HELD, RETAINED = "held", "retained"
PARTS = (HELD, "trained", "other", "declined", RETAINED)
"""Of a sheet."""
Share = Callable[[Sequence[Sequence[float]]], dict[str, Any]]
"""Scores by source to a mean with its interval."""
_SPEC = re.compile(
    r"(?P<name>[a-z][a-z0-9-]*)(@(?P<size>[1-9]\d*))?(/(?P<targets>\w+(\+\w+)*))?"
    r"(\*(?P<factor>\d+(\.\d+)?))?(:(?P<seconds>\d+(\.\d+)?)s)?"
)


@dataclass(frozen=True)
class Spec:
    """A way of writing with its size, targets, rate and limit."""

    name: str
    size: int | None = None
    targets: tuple[str, ...] = ()
    factor: float = 1.0
    """Of the method's usual rate."""
    seconds: float | None = None

    @classmethod
    def of(cls, text: str) -> Spec:
        """Read a spec. Raises ConfigError for another form, or a method that there is not."""
        match = _SPEC.fullmatch(text)
        if not match:
            raise ConfigError(
                f"method {text!r} is no NAME[@SIZE][/TARGET][*FACTOR][:SECONDSs]; write it like "
                "gradient@8 or prompt@16*0.5."
            )
        part = match.groupdict()
        spec = cls(
            part["name"],
            int(part["size"]) if part["size"] else None,
            tuple(part["targets"].split("+")) if part["targets"] else (),
            float(part["factor"] or 1),
            float(part["seconds"]) if part["seconds"] else None,
        )
        if not spec.factor > 0 or spec.seconds == 0:
            raise ConfigError(f"method {text!r}: give a factor and seconds above 0.")
        writer_of(spec.name, spec.config())  # refuses a name that there is not
        return spec

    def config(self, **more: Any) -> WriteConfig:
        """Settings of its write; for an adapter the size is the rank."""
        plain = writer_of(self.name, WriteConfig())
        lora = LoraConfig()
        if plain.exports and self.size:
            lora = replace(lora, rank=self.size)
        if self.targets:
            lora = replace(lora, targets=self.targets)
        size = None if plain.exports else self.size
        return WriteConfig(lora=lora, size=size, max_seconds=self.seconds, **more)


# -- questions -----------------------------------------------------------------------------------


class Question(NamedTuple):
    """A question and its right answers; none: it is to be declined."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """All questions on a source, the same whatever wrote it."""

    held: tuple[Question, ...]
    """A question of each fact, in a form that was not trained."""
    trained: tuple[Question, ...]
    """The same in the first of the forms that were."""
    other: tuple[Question, ...]
    """Of another source of the size: what is right by chance or by format."""
    declined: tuple[Question, ...]
    retained: tuple[Question, ...]
    """What the base answers right, and the source says nothing of."""


@functools.lru_cache(maxsize=8)
def lesson_of(model: Model, source: Source, seed: int) -> Lesson:
    """Examples of a source: its facts in the forms that are trained, and questions to decline."""
    config = LessonConfig(negatives=NEGATIVES, seed=seed)
    return lesson_for(model, source.taught, config, watch=Watch())


@functools.lru_cache(maxsize=8)
def sheet_of(model: Model, data: str, n_facts: int, number: int, skip: int) -> Sheet:
    """All questions on a source. Retained is what the base answers as it is, to be called so.

    The embedded base knows nothing of the world, so what it is to retain is reading: questions on
    another source with that source before them.
    """
    every = sources(data, n_facts, skip)
    source, other = every[number], every[(number + 1) % len(every)]
    probes = lesson_of(model, source, 0).probes
    unknown = [p.question for p in probes if p.kind in ("unknown", "neighborhood")]
    declined = (source.unanswerable or tuple(unknown))[:N_DECLINED]
    if model.phrasing == POCKET:
        page = _elsewhere(data, n_facts, (number + 1) * n_facts + skip)
        general = [
            Question(f"{page.text}\n\n{fact.forms[0]}", (fact.answer,))
            for fact in page.facts[:N_RETAINED]
        ]
    else:
        texts = [source.text, *(q for fact in source.facts for q in fact.forms)]
        known = known_beforehand(model, texts)[:N_RETAINED]
        general = [Question(each.question, each.answers) for each in known]
    right = scores(model, general)
    return Sheet(
        tuple(Question(fact.held, (fact.answer,)) for fact in source.facts),
        tuple(Question(fact.forms[0], (fact.answer,)) for fact in source.facts),
        tuple(Question(fact.held, (fact.answer,)) for fact in other.facts),
        tuple(Question(question, ()) for question in declined),
        tuple(each for each, score in zip(general, right, strict=True) if score == 1),
    )


def _elsewhere(data: str, n_facts: int, end: int) -> Source:
    """A page of some facts, none of which a source that ends at a fact of the file has."""
    pages = sources(data, N_PAGE, 0)
    pages, size = (pages, N_PAGE) if len(pages) > 1 else (sources(data, n_facts, 0), n_facts)
    return pages[(end // size + 1) % len(pages)]


def replies(model: Model, prompts: Sequence[str], state: State | None = None) -> list[str]:
    """Free greedy replies, with a state switched on for all of the pass or without."""
    on: AbstractContextManager[object] = state.on(model) if state else nullcontext()
    with on:
        return model.generate(prompts, max_new_tokens=ANSWER_TOKENS, end_loops=True)


def score(model: Model, reply: str, answers: tuple[str, ...]) -> float:
    """1 where a reply has an answer, by the base's usual metric; without one, where it declines."""
    metric = METRICS[usual_metric(model)]
    return float(metric(reply, answers) == 1 if answers else is_declined(reply))


def scores(
    model: Model, questions: Sequence[Question], state: State | None = None, before: str = ""
) -> list[float]:
    """1 or 0 for each question, answered freely; a text may stand before them all."""
    if not questions:
        return []
    prompts = [f"{before}\n\n{each.text}" if before else each.text for each in questions]
    outputs = replies(model, prompts, state)
    pairs = zip(outputs, questions, strict=True)
    return [score(model, output, each.answers) for output, each in pairs]


def marked(
    model: Model,
    sheet: Sheet,
    state: State | None,
    before: str = "",
    parts: Sequence[str] = PARTS,
) -> dict[str, Any]:
    """Scores of parts of a sheet, by name; what is to be retained has no text before it."""
    alike = [name for name in parts if name != RETAINED]
    groups = [getattr(sheet, name) for name in alike]
    flat = iter(scores(model, [each for own in groups for each in own], state, before))
    marks: dict[str, Any] = {
        name: [next(flat) for _ in own] for name, own in zip(alike, groups, strict=True)
    }
    return marks | {n: scores(model, sheet.retained, state) for n in parts if n == RETAINED}


# -- a write -------------------------------------------------------------------------------------


def source_for(data: str, n_facts: int, number: int, skip: int, control: str) -> Source:
    """The source that a job writes, its values moved where the control says so."""
    every = sources(data, n_facts, skip)
    return shuffled(every, number) if control == SHUFFLED else every[number]


def written(
    model: Model,
    spec: Spec,
    source: Source,
    *,
    control: str = OWN,
    seed: int = 0,
    epochs: int,
    text: Knowledge | None = None,
    file: str = "",
    kit: Kit | None = None,
) -> tuple[State, Cost]:
    """Write a source in one way; the state as it comes back from disk, proved to do something.

    Readers of text get the source's prose, or another text; a method with a kit takes that of a
    file, or `kit`, whose state needs do nothing. Raises what the writer raises,
    ConfigError for a kit that is missing, AdapterError for a state that came back changed, NoEffect
    and ModelError as `writers.writer.prove`.
    """
    config = replace(settings(model, spec, seed, epochs), kit=file)
    writer = writer_of(spec.name, config)
    if kit:
        writer = Learned(LEARNED[spec.name], config, kit)
    lesson = lesson_of(model, source, seed)
    material = Material(NEUTRAL if control == BLANK else text or source.prose)
    if writer.reads == "lesson":
        material = Material(source.taught, lesson.examples, lesson.rehearsal)
    state, cost = writer.write(model, material, seed=seed, run=None, watch=Watch())
    return from_disk(model, state, lesson, proved=kit is None), cost


def settings(model: Model, spec: Spec, seed: int, epochs: int) -> WriteConfig:
    """How a spec is written on a base: at the method's usual rate times the spec's factor."""
    lr = usual_lr(spec.name, model) * spec.factor
    config = spec.config(lr=lr, epochs=epochs, seed=seed)
    return replace(config, lora=replace(config.lora, seed=seed))


def from_disk(model: Model, state: State, lesson: Lesson, *, proved: bool = True) -> State:
    """A state as it comes back from disk, proved to move logits and to leave the base as it was.

    Not `proved`: a control that may change nothing, which is what it is there to show.

    Raises AdapterError for one that came back changed, and as `writers.writer.prove`.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "state"
        state.save(place, {KIND: state.kind})
        stored = load_state(place)
    if stored.id != state.id:
        raise AdapterError(f"a state of kind {state.kind!r} came back from disk changed.")
    if proved:
        first = lesson.examples[0]
        prove(stored, model, first.prompt, first.completion)
    return stored


def attempt(model: Model, job: Mapping[str, Any]) -> dict[str, Any]:
    """Write and ask as a job says; a write that comes to nothing is a record with `failed`.

    A control has the questions in words that were not trained, and no more.
    """
    where = (job["data"], job["facts"], job["source"], job["skip"])
    sheet = sheet_of(model, *where)
    spec, source = Spec.of(job["method"]), source_for(*where, job["control"])
    try:
        state, cost = written(
            model,
            spec,
            source,
            control=job["control"],
            seed=job["seed"],
            epochs=job["epochs"],
            file=job.get("kit", ""),
            kit=changed(model, job),
        )
    except (AdapterError, ConfigError, ModelError) as error:
        return {"failed": sentence(error)}
    return {
        "reason": cost.reason,
        "epochs": cost.n_epochs,
        "seconds": round(cost.seconds, 4),
        "bytes": state.size_bytes,
        **marked(model, sheet, state, parts=PARTS if job["control"] == OWN else (HELD,)),
    }


def sentence(error: LorewrightError) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())
