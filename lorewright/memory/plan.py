"""The verb `plan`: what a source asks of a memory, and the rank that a write takes by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lorewright.errors import ConfigError
from lorewright.files import read_object, save_json
from lorewright.knowledge.data import Document, Example, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig, prepare
from lorewright.knowledge.selfstudy import AskLLM
from lorewright.law import plan as plans
from lorewright.law.calibration import Calibration, calibrate, find, load_of
from lorewright.law.plan import Plan
from lorewright.memory.opened import OpenFolder, as_knowledge
from lorewright.models.model import Model
from lorewright.models.questions import write_about
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

PLAN_FILE = "plan.json"


def plan(
    base: OpenFolder | Model,
    knowledge: Knowledge | Document,
    *,
    wanted: float = plans.WANTED,
    config: WriteConfig | None = None,
    lesson: LessonConfig | None = None,
    teacher: AskLLM | None = None,
    recalibrate: bool = False,
    watch: Watch | None = None,
) -> Plan:
    """Which rank recalls the wanted share, and what it will cost, before anything is trained.

    The base writes the questions as for a write, and is calibrated first where neither the user's
    cache nor the package knows it with these settings; no memory is written. Raises as
    `lesson.prepare` and `calibration.calibrate`, ConfigError for a share outside (0, 1).
    """
    model = base if isinstance(base, Model) else base.model
    config = config or WriteConfig(lr=suggested_lr(model))
    watch = watch or Watch()
    if not 0 < wanted < 1:
        raise ConfigError(f"the wanted recall is {wanted}; give a share between 0 and 1.")
    shape = plans.shape_of(model, config.lora)
    known = as_knowledge(knowledge)
    made = lesson_for(model, known, lesson or LessonConfig(), teacher=teacher, watch=watch)
    load = load_of(model, made.examples)
    calibration = None if recalibrate else find(model, config)
    if calibration is None:
        calibration = calibrate(
            model, config, fresh=recalibrate, progress=watch.step, on_epoch=watch.epoch
        )
    planned = plans.make(load, calibration.forecast, shape, epochs=config.epochs, wanted=wanted)
    watch.step("timing a few steps")
    lora = replace(config.lora, rank=planned.rank)
    pace = plans.pace(model, made.examples, replace(config, lora=lora))
    return plans.timed(planned, calibration.forecast, pace)


def lesson_for(
    model: Model,
    known: Knowledge,
    config: LessonConfig,
    *,
    teacher: AskLLM | None = None,
    probes: Sequence[Probe] = (),
    watch: Watch,
) -> Lesson:
    """Examples and probes of some knowledge, its questions written by the base or a teacher."""
    return prepare(
        known,
        ask_llm=teacher or partial(write_about, model),
        closed_book=model.generate,
        config=config,
        given_probes=probes,
        progress=watch.step,
        phrasing=model.phrasing if teacher is None else "general",
    )


def rank_for(
    model: Model, run: Path, examples: Sequence[Example], config: WriteConfig, watch: Watch
) -> tuple[WriteConfig, str]:
    """A write's settings with the planned rank, and a sentence on it, stored with the run.

    Without a calibration the rank is FIXED_RANK: a write spends no minutes on one by itself.
    """
    path = run / PLAN_FILE
    if not path.exists():
        save_json(_ranked(model, examples, config, find(model, config)), path)
    stored = read_object(path, "delete its run and write again")
    rank, note = int(stored["rank"]), str(stored["note"])
    watch.step(note)
    return replace(config, lora=replace(config.lora, rank=rank)), note


def _ranked(
    model: Model, examples: Sequence[Example], config: WriteConfig, calibration: Calibration | None
) -> dict[str, object]:
    if calibration is None:
        note = (
            f"Rank {plans.FIXED_RANK}: nothing is known of this base with these settings; "
            "`lore plan` would calibrate it, once."
        )
        return {"rank": plans.FIXED_RANK, "note": note}
    shape, load = plans.shape_of(model, config.lora), load_of(model, examples)
    ranks = [rank for rank in plans.RANKS if rank >= plans.LEAST_WRITTEN] or [shape.largest]
    planned = plans.make(
        load,
        calibration.forecast,
        shape,
        epochs=config.epochs,
        wanted=plans.WANTED_OF_WRITE,
        ranks=ranks if min(ranks) <= shape.largest else [shape.largest],
        enough=plans.ENOUGH_TO_WRITE,
    )
    advice = " ".join(planned.notes[:-1])
    note = f"Planned: {planned}. {advice}".strip()
    return {"rank": planned.rank, "note": note, "plan": planned.to_json()}
