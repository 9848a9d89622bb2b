"""The verb `plan`: which rank a source needs, and what writing it will cost."""

from __future__ import annotations

from dataclasses import replace

from lorewright.errors import ConfigError
from lorewright.knowledge.lesson import LessonConfig
from lorewright.knowledge.selfstudy import AskLLM
from lorewright.law import plan as plans
from lorewright.law.calibration import calibrate, find, load_of
from lorewright.law.plan import Plan
from lorewright.memory.opened import OpenFolder, Source, as_knowledge
from lorewright.memory.write import lesson_for, unwritable_notes, writable_share
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch


def plan(
    base: OpenFolder | Model,
    knowledge: Source,
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
    knowledge = as_knowledge(knowledge)
    prepared = lesson_for(model, knowledge, lesson or LessonConfig(), teacher=teacher, watch=watch)
    load = load_of(model, prepared.examples)
    calibration = None if recalibrate else find(model, config)
    if calibration is None:
        calibration = calibrate(model, config, fresh=recalibrate, watch=watch)
    planned = plans.make(
        load,
        calibration.forecast,
        shape,
        epochs=config.epochs,
        wanted=wanted,
        writable=writable_share(model, prepared),
    )
    watch.step("timing a few steps")
    lora = replace(config.lora, rank=planned.rank)
    pace = plans.pace(model, prepared.examples, replace(config, lora=lora))
    timed = plans.timed(planned, calibration.forecast, pace)
    lost = unwritable_notes(model, knowledge, prepared)
    return replace(timed, notes=(*lost, *timed.notes))
