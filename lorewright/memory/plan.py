"""The verb `plan`: what a source asks of a memory, and the rank that a write takes by default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lorewright.errors import ConfigError
from lorewright.files import read_object, save_json
from lorewright.knowledge.data import Document, Example, Knowledge
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.knowledge.selfstudy import AskLLM
from lorewright.law import plan as plans
from lorewright.law.calibration import Calibration, calibrate, find, load_of
from lorewright.law.plan import Plan
from lorewright.models.model import Model
from lorewright.models.questions import write_about
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

PLAN_FILE = "plan.json"


def plan(
    model: Model,
    knowledge: Knowledge | Document,
    *,
    wanted: float = plans.WANTED,
    config: WriteConfig | None = None,
    lesson: LessonConfig | None = None,
    teacher: AskLLM | None = None,
    recalibrate: bool = False,
    watch: Watch | None = None,
) -> Plan:
    """Plan a write on a base; see `Memory.plan`."""
    known = Knowledge((knowledge,)) if isinstance(knowledge, Document) else knowledge
    config = config or WriteConfig(lr=suggested_lr(model))
    watch = watch or Watch()
    if not 0 < wanted < 1:
        raise ConfigError(f"a recall of {wanted} was asked for; give a share between 0 and 1.")
    shape = plans.shape_of(model, config.lora)
    made = prepare(
        known,
        ask_llm=teacher or partial(write_about, model),
        closed_book=model.generate,
        config=lesson or LessonConfig(),
        progress=watch.step,
        phrasing=model.phrasing if teacher is None else "general",
    )
    load = load_of(model, made.examples)
    found = None if recalibrate else find(model, config)
    if found is None:
        found = calibrate(
            model, config, fresh=recalibrate, progress=watch.step, on_epoch=watch.epoch
        )
    planned = plans.make(
        load,
        found.forecast,
        shape,
        epochs=config.epochs,
        wanted=wanted,
    )
    watch.step("timing a few steps")
    lora = replace(config.lora, rank=planned.rank)
    pace = plans.pace(model, made.examples, replace(config, lora=lora))
    return plans.timed(planned, found.forecast, pace)


def rank_for(
    model: Model, run: Path, examples: Sequence[Example], config: WriteConfig, watch: Watch
) -> tuple[WriteConfig, str]:
    """A write's settings with the planned rank, and a sentence on it, kept with the run.

    Without a calibration the rank is FIXED_RANK: a write does not spend minutes on one unasked.
    """
    path = run / PLAN_FILE
    if not path.exists():
        save_json(_ranked(model, examples, config, find(model, config)), path)
    kept = read_object(path, "delete its run and write again")
    rank, note = int(kept["rank"]), str(kept["note"])
    watch.step(note)
    return replace(config, lora=replace(config.lora, rank=rank)), note


def _ranked(
    model: Model, examples: Sequence[Example], config: WriteConfig, found: Calibration | None
) -> dict[str, object]:
    if found is None:
        note = (
            f"Rank {plans.FIXED_RANK}: nothing is known of this base with these settings; "
            "`lore plan` would calibrate it, once."
        )
        return {"rank": plans.FIXED_RANK, "note": note}
    shape, load = plans.shape_of(model, config.lora), load_of(model, examples)
    ranks = [rank for rank in plans.RANKS if rank >= plans.LEAST_WRITTEN] or [shape.largest]
    planned = plans.make(
        load,
        found.forecast,
        shape,
        epochs=config.epochs,
        wanted=plans.WANTED_OF_WRITE,
        ranks=ranks if min(ranks) <= shape.largest else [shape.largest],
        enough=plans.ENOUGH_TO_WRITE,
    )
    advice = " ".join(planned.notes[:-1])
    return {"rank": planned.rank, "note": f"Planned: {planned}. {advice}".strip()} | {
        "plan": planned.to_json()
    }
