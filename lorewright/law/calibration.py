"""Calibration: short writes of made-up facts, from which the planner learns what a base can hold.

Each body of the sweep is written once, at several ranks in one stack, with the recipe of the write
that is planned. Budgets of epochs lie around what half of the answers need, so that some writes
fail. A calibration holds for one base, targets, recipe and version of the sweep. Trials are stored
one by one: an interrupted calibration resumes.

Knows writes and files; nothing of plans, or of anybody's documents.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorewright.errors import DataError, ModelError
from lorewright.files import CACHE, cache_folder, digest, locked, read_object, save_json
from lorewright.knowledge.data import Example, Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.law.forecast import Forecast, Load, Trial, expected, fit
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.catalogue import POCKET_FOLDER
from lorewright.models.model import Model
from lorewright.recall.traces import trace
from lorewright.training.config import Diverged, Job, WriteConfig
from lorewright.training.loop import write_all
from lorewright.training.watch import Watch

VERSION = 2
"""Of the sweep; a change invalidates older calibrations."""
RANKS = (1, 2, 8)
PACKAGED = POCKET_FOLDER / "calibration.json"
"""Of the embedded base, made by pocket/calibrate.py."""
FREE = ("epochs", "seed", "trunk", "max_seconds")
"""Fields of WriteConfig that a calibration does not depend on; nor on the LoRA's rank and seed."""
LESSON = LessonConfig()
"""What a write trains beside the answers by default."""
FIRST_EPOCHS = 60
"""Least budget of the first body of the sweep."""
LEAST_EPOCHS = 2
EARLY = 1.15
"""Epochs after which a write with a large budget ends, over those in which half is recalled."""
LEAST_NATS = 1e-3
"""Of a load that the base knows already."""
DECLINED = "unknown"
"""Kind of the examples whose question is to be declined."""
LOCK_SECONDS = 2.0
TRIALS, NAME = "trials", "calibration.json"
REMEDY = "delete it and calibrate again"


@dataclass(frozen=True)
class Body:
    """One body of facts of the sweep."""

    kind: str
    """Of its answers; a key of KINDS."""
    n_facts: int
    forms: int
    """Forms of question on each fact, at most len(ASKS)."""
    share: float
    """The budget, over the epochs that half of the answers are expected to need."""
    keys: str = "own"
    """What its questions name, a key of KEYS: subjects with distinct names (`own`); with names
    that share parts and are easily confused (`alike`); or `entries` of a list, a person and a
    colon, beside which a lesson has few questions to decline."""

    @property
    def name(self) -> str:
        """Group of its trials."""
        keys = "" if self.keys == "own" else f"-{self.keys}"
        return f"{self.kind}-{self.n_facts}x{self.forms}-{self.share:g}{keys}"


@dataclass(frozen=True)
class Calibration:
    """Trials of one base, targets and recipe, and the forecast fitted to them."""

    about: Mapping[str, Any]
    """What it holds for: see `identity`."""
    trials: tuple[Trial, ...]
    forecast: Forecast
    seconds: float
    """Training time of all trials."""

    def to_json(self) -> dict[str, Any]:
        """Plain data; the forecast is fitted again on loading."""
        trials = [asdict(trial) for trial in self.trials]
        return {"about": dict(self.about), "seconds": self.seconds, "trials": trials}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Calibration:
        """Inverse of to_json. Raises DataError for data of another shape."""
        try:
            trials = _trials(plain["trials"])
            return cls(dict(plain["about"]), trials, fit(trials), float(plain["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not a calibration ({type(error).__name__}: {error}); calibrate again."
            ) from error


# -- what a calibration holds for, and where it is stored ----------------------------------------


def identity(model: Model, config: WriteConfig) -> dict[str, Any]:
    """What a calibration must agree with: base, chat template, targets, recipe, version."""
    recipe = {k: v for k, v in config.to_json().items() if k != "lora" and k not in FREE}
    lora = config.lora.to_json()
    shape = ("alpha", "targets", "layers", "rslora", "variant")
    fixed = {k: lora[k] for k in shape if k in lora}  # plain LoRA names no variant
    fixed = {k: list(v) if isinstance(v, tuple) else v for k, v in fixed.items()}
    return {
        "version": VERSION,
        "base": model.digest,
        "template": model.template_digest,
        "lora": fixed,
        "recipe": recipe,
    }


def find(model: Model, config: WriteConfig) -> Calibration | None:
    """The calibration for a base and recipe, from the user's cache or packaged; None without one.

    A damaged file is ignored.
    """
    about = identity(model, config)
    for path in (place(about) / NAME, PACKAGED):
        try:
            plain = read_object(path, REMEDY) if path.is_file() else {}
            if plain.get("about") == about:
                return Calibration.from_json(plain)
        except DataError:
            continue
    return None


def place(about: Mapping[str, Any]) -> Path:
    """The folder in the user's cache for what a calibration holds for."""
    return cache_folder() / "calibrations" / digest(about)[:16]


# -- the sweep -----------------------------------------------------------------------------------


def calibrate(
    model: Model,
    config: WriteConfig,
    *,
    bodies: Sequence[Body] = (),
    ranks: Sequence[int] = (),
    folder: Path | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
) -> Calibration:
    """Measure what a base holds under a recipe; store it in the user's cache (or `folder`).

    The first of `bodies` (SWEEP by default) is written with the recipe's own epochs; the budgets of
    the others follow from it. An interrupted call resumes; `fresh` begins anew. Raises ModelError
    when nothing is ever recalled or a write diverges, Locked when another process calibrates the
    same, StorageError when the disk refuses.
    """
    about = identity(model, config)
    folder = folder or place(about)
    bodies, ranks = tuple(bodies or SWEEP), tuple(ranks or RANKS)
    trials: list[Trial] = []
    seconds, watch = 0.0, watch or Watch()
    with locked(folder, work="calibrating in", wait_seconds=LOCK_SECONDS, remedy=f"set {CACHE}"):
        if fresh:
            shutil.rmtree(folder / TRIALS, ignore_errors=True)
        for i, body in enumerate(bodies):
            examples = _examples(model, made_up(body))
            load = load_of(model, examples)
            epochs = _budget(body, load, config, trials)
            watch.step(
                f"calibrating, {i + 1} of {len(bodies)}: {body.n_facts} made-up facts ({body.kind}"
                f"), {load.n_examples} questions, {epochs} epochs, ranks "
                f"{', '.join(map(str, ranks))}"
            )
            mark = digest([about, asdict(body), ranks, epochs, i])
            path = folder / TRIALS / f"{mark[:16]}.json"
            if not path.is_file():
                run = path.with_suffix("")
                how = replace(config, epochs=epochs, seed=i, max_seconds=None)
                rows = _write(model, examples, how, ranks, run, watch)
                measured = [
                    Trial(load, rank, epochs, n_exact, used, body.name)
                    for rank, (n_exact, used, _) in zip(ranks, rows, strict=True)
                ]
                save_json({"trials": measured, "seconds": max(row[2] for row in rows)}, path)
                shutil.rmtree(run, ignore_errors=True)
            stored = read_object(path, REMEDY)
            try:
                trials += _trials(stored["trials"])
                seconds += float(stored["seconds"])
            except (KeyError, TypeError) as error:
                raise DataError(f"{path} is damaged ({error}); {REMEDY}.") from error
        watch.step("fitting the forecast")
        result = Calibration(about, tuple(trials), fit(trials), round(seconds, 1))
        save_json(result.to_json(), folder / NAME)
    return result


def load_of(model: Model, examples: Sequence[Example]) -> Load:
    """Measure a load: its answers, and the nats that the base lacks of them.

    Examples to decline are counted apart; an answer of one source in several forms counts once.
    Raises DataError where no answer is left.
    """
    asks = [example for example in examples if example.kind != DECLINED]
    if not asks:
        raise DataError("the examples have no answer to remember; check the views.")
    rows = [model.render(example.prompt, example.completion) for example in asks]
    nats = [0.0] * len(rows)
    with torch.no_grad():
        for chosen in by_length([len(row) for row in rows], pass_tokens(model.device)):
            batch = model.batch([rows[i] for i in chosen])
            loss_BC = model.completion_nats(batch).loss_BT * batch.mask_BC
            for i, total in zip(chosen, loss_BC.sum(dim=1).tolist(), strict=True):
                nats[i] = total
    forms: dict[tuple[str, str], list[int]] = {}
    for i, example in enumerate(asks):
        forms.setdefault((example.source, example.completion), []).append(i)
    total = sum(sum(nats[i] for i in same) / len(same) for same in forms.values())
    n_tokens = sum(len(rows[same[0]].completion_ids) for same in forms.values())
    n_declined = len(examples) - len(asks)
    return Load(len(forms), len(asks), n_tokens, max(total, LEAST_NATS), n_declined)


def _examples(model: Model, knowledge: Knowledge) -> tuple[Example, ...]:
    """As a write of these facts would train them, questions to decline included."""
    ask = model.generate
    return prepare(knowledge, ask_llm=ask, closed_book=ask, config=LESSON).examples


def _budget(body: Body, load: Load, config: WriteConfig, trials: Sequence[Trial]) -> int:
    """Epochs for a body: its share of what half of it should need, scaled from the first body."""
    if not trials:
        return max(config.epochs, FIRST_EPOCHS)
    first = [trial for trial in trials if trial.group == trials[0].group]
    best = max(trial.n_exact for trial in first)
    if 2 * best < first[0].load.n_examples:
        raise ModelError(
            f"of {first[0].load.n_examples} made-up facts at most {best} were recalled after "
            f"{first[0].epochs} epochs, so there is nothing to plan with; try another --lr or "
            "objective, or more epochs."
        )
    used = min(trial.used for trial in first)
    scale = expected(load) / expected(first[0].load)
    return max(LEAST_EPOCHS, round(body.share * used / EARLY * scale))


def _write(
    model: Model,
    examples: Sequence[Example],
    config: WriteConfig,
    ranks: Sequence[int],
    run: Path,
    watch: Watch,
) -> list[tuple[int, int, float]]:
    """Exact answers, epochs and seconds of one stacked write, by rank."""
    loras = [replace(config.lora, rank=rank, seed=config.seed) for rank in ranks]
    jobs = [Job(examples, replace(config, lora=lora)) for lora in loras]
    results = write_all(
        model,
        jobs,
        run=run,
        on_epoch=lambda job, epoch: None if job else watch.epoch(epoch),
        advance=watch.advance,
    )
    rows = [model.render(e.prompt, e.completion) for e in examples if e.kind != DECLINED]
    outcomes = []
    for rank, written in zip(ranks, results, strict=True):
        if isinstance(written, Diverged):
            raise ModelError(f"calibrating at rank {rank}, {written.why}")
        with model.using(written.adapter):
            n_exact = sum(token.exact for token in trace(model, rows))
        outcomes.append((n_exact, len(written.epochs), written.epochs[-1].seconds))
    return outcomes


def _trials(rows: Sequence[Mapping[str, Any]]) -> tuple[Trial, ...]:
    return tuple(Trial(**{**row, "load": Load(**row["load"])}) for row in rows)


# -- made-up facts -------------------------------------------------------------------------------


def made_up(body: Body) -> Knowledge:
    """The facts of a body, the same every time."""
    rng = random.Random(f"calibration-{body.name}")
    answer, parts = KINDS[body.kind], KEYS[body.keys](rng, body.n_facts)
    asks, topics = (ENTRY, ("entry",)) if body.keys == "entries" else (ASKS, TOPICS)
    facts: dict[tuple[str, str], str] = {}
    while len(facts) < body.n_facts:
        names = [rng.choice(part) for part in parts] or [_name(rng, 3), _name(rng, 2)]
        facts.setdefault((rng.choice(topics), " ".join(names)), answer(rng))
    return Knowledge(
        facts=tuple(
            # One id for all forms, which share an answer.
            Fact(f"{subject}, {topic}", form.format(s=subject, t=topic), reply)
            for (topic, subject), reply in facts.items()
            for form in asks[: body.forms]
        )
    )


def _name(rng: random.Random, n: int) -> str:
    """A pronounceable word that means nothing."""
    return "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(n)).capitalize()


def _string(alphabet: str, n: int) -> Callable[[random.Random], str]:
    return lambda rng: "".join(rng.choice(alphabet) for _ in range(n))


TOPICS = ("code", "owner", "key", "address", "sign", "partner")
ASKS = (
    "What is the {t} of {s}?",
    "Tell me the {t} of {s}.",
    "Which {t} does {s} have?",
    "For {s}, what is the {t}?",
    "{s}: what is the {t}?",
)
ENTRY = ("{s}:",)
PERSONS = (
    ("Anna", "Paul", "Maria", "Peter", "Laura", "David", "Emma", "Thomas", "Julia", "Martin"),
    ("Adams", "Baker", "Carter", "Evans", "Fisher", "Hunter", "Miller", "Parker", "Reed", "Young"),
)
WORDS = (
    *("stone", "river", "lamp", "copper", "winter", "garden", "bridge", "letter", "window"),
    *("market", "forest", "engine", "harbour", "silver", "meadow", "paper", "tower", "island"),
    *("mirror", "bottle", "carpet", "ladder", "basket", "candle"),
)


def _alike(rng: random.Random, n_facts: int) -> tuple[list[str], ...]:
    """So few names that subjects share them."""
    n_parts = math.isqrt(n_facts) + 1
    return tuple([_name(rng, n) for _ in range(n_parts)] for n in (3, 2))


KEYS: dict[str, Callable[[random.Random, int], tuple[Sequence[str], ...]]] = {
    "own": lambda rng, n_facts: (),
    "alike": _alike,
    "entries": lambda rng, n_facts: PERSONS,
}
"""First and last names of the subjects; none: every subject gets its own."""
KINDS: dict[str, Callable[[random.Random], str]] = {
    "4 digits": _string("0123456789", 4),
    "10 digits": _string("0123456789", 10),
    "16 hex digits": _string("0123456789abcdef", 16),
    "names": lambda rng: f"{_name(rng, 2)} {_name(rng, 3)}",
    "words": lambda rng: " ".join(rng.choice(WORDS) for _ in range(5)),
}
SWEEP = (
    Body("10 digits", 12, 1, 1.0),
    Body("10 digits", 24, 1, 1.05),
    Body("10 digits", 12, 1, 1.4, "alike"),
    Body("4 digits", 20, 1, 1.3, "alike"),
    Body("4 digits", 16, 1, 1.0),
    Body("16 hex digits", 10, 1, 1.05),
    Body("16 hex digits", 8, 1, 1.4, "alike"),
    Body("names", 18, 1, 1.1),
    Body("names", 10, 1, 1.4, "alike"),
    Body("10 digits", 8, 5, 1.05),
    Body("names", 6, 5, 1.4, "alike"),
    Body("4 digits", 10, 5, 1.0),
    Body("10 digits", 16, 1, 1.1, "entries"),
    Body("4 digits", 24, 1, 1.3, "entries"),
    Body("names", 12, 1, 1.2, "entries"),
    Body("words", 8, 1, 1.2, "entries"),
    Body("16 hex digits", 6, 1, 1.2, "entries"),
    Body("4 digits", 56, 1, 1.2, "entries"),
)
"""The first is written with the recipe's own epochs. Shares around 1, so that some writes fail."""
