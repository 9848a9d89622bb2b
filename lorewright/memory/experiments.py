"""Small experiments on a base: arms that differ in one setting, trained in one stack, compared.

    rank     how much does a rank hold?       layers         which layers learn it?
    forms    does one wording do?             overfitting    what do dropout and decay save?
    merging  does one hold what three hold?

Each arm learns the same made-up facts and is measured on them as trained and in a wording that no
arm was trained on; under `merging` three arms learn facts of their own, and the others are
merges of the three, probed for the facts of all. What a textbook expects is stated beforehand; the
closing sentence is computed from what happened, also where the expected effect is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorewright.errors import ConfigError, ModelError
from lorewright.files import cache_folder, save_json
from lorewright.knowledge.data import Example
from lorewright.recall.statistics import Proportion, wilson
from lorewright.training.config import Diverged, Epoch, HeldOut, Job, WriteConfig
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.models.model import Model

ABOUT, RECORD = "about.json", "record.json"
"""Of a run: what is compared, at once; what came of it, at the end."""


RISE = 0.05
"""Nats by which a held-out loss must rise to count as overfitting."""


@dataclass(frozen=True)
class Arm:
    """One way to train on the facts."""

    name: str
    config: WriteConfig
    forms: int = 3
    """Wordings of each question that are trained."""
    body: int = 0
    """Which facts: arms with the same number learn the same."""


@dataclass(frozen=True)
class Outcome:
    """What an arm came to."""

    arm: str
    epochs: tuple[Epoch, ...]
    trained: Proportion
    """Share of its own examples that greedy decoding is certain to reproduce."""
    held: Proportion
    """The same in the wording that it was not trained on."""

    @property
    def rise_nats(self) -> float:
        """How far the held-out loss has risen from its least to the end."""
        nats = [e.held_out_nats for e in self.epochs if e.held_out_nats is not None]
        return nats[-1] - min(nats) if nats else 0.0

    @property
    def gap_nats(self) -> float:
        """Held-out loss less training loss at the end; 0 for what was not trained."""
        if not self.epochs:
            return 0.0
        last = self.epochs[-1]
        return (last.held_out_nats or 0.0) - last.loss_nats

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        shares = {"trained": self.trained.to_json(), "held": self.held.to_json()}
        gaps = {"gap_nats": self.gap_nats, "rise_nats": self.rise_nats}
        return {"arm": self.arm, "epochs": [asdict(e) for e in self.epochs], **shares, **gaps}


@dataclass(frozen=True)
class Experiment:
    """Arms to compare, what is expected of them, and how the result reads."""

    question: str
    expected: str
    """What a textbook says will happen."""
    kind: str
    """Of the answers: a key of `calibration.KINDS`."""
    n_facts: int
    arms: Callable[[WriteConfig], Sequence[Arm]]
    conclude: Callable[[Sequence[Outcome]], str]
    merges: tuple[str, ...] = ()
    """Ways to merge what the arms have learnt; each is an arm after these, and probed for all."""


# -- what is compared -----------------------------------------------------------------------------


def _ranks(config: WriteConfig) -> list[Arm]:
    loras = [replace(config.lora, rank=rank) for rank in (1, 2, 4, 8, 16)]
    return [Arm(f"rank {lora.rank}", replace(config, epochs=14, lora=lora)) for lora in loras]


def _layers(config: WriteConfig) -> list[Arm]:
    config = replace(config, epochs=16)

    def arm(name: str, **where: Any) -> Arm:
        return Arm(name, replace(config, lora=replace(config.lora, **where)))

    return [
        arm("all layers"),
        arm("attention", targets=("attention",)),
        arm("mlp", targets=("mlp",)),
        arm("first layer", layers=(0,)),
        arm("queries, keys", targets=("q_proj", "k_proj")),
    ]


def _forms(config: WriteConfig) -> list[Arm]:
    # as many steps for each: fewer wordings are seen more often
    return [
        Arm(f"{n} wording{'s' if n > 1 else ''}", replace(config, epochs=80 // n), n)
        for n in (1, 2, 4)
    ]


def _overfitting(config: WriteConfig) -> list[Arm]:
    # nearly certain of every token: training goes on long after all is recalled
    long = replace(config, epochs=80, margin=0.999)
    return [
        Arm("20 epochs", replace(long, epochs=20), 1),
        Arm("80 epochs", long, 1),
        Arm("dropout", replace(long, dropout=0.1), 1),
        Arm("dropout, decay", replace(long, dropout=0.1, weight_decay=0.1), 1),
    ]


def _sources(config: WriteConfig) -> list[Arm]:
    config = replace(config, epochs=40, lora=replace(config.lora, rank=4))
    return [Arm(f"source {n + 1}", config, body=n) for n in range(3)]


# -- how results read -----------------------------------------------------------------------------


def _apart(low: Proportion, high: Proportion) -> bool:
    """Whether one share is above the other beyond both 95 % intervals."""
    return bool(low.high is not None and high.low is not None and high.low > low.high)


def _of_ranks(outcomes: Sequence[Outcome]) -> str:
    least, most = outcomes[0], outcomes[-1]
    if _apart(least.trained, most.trained):
        enough = next(each for each in outcomes if not _apart(each.trained, most.trained))
        text = (
            f"More rank holds more within this budget: as trained {least.arm} {least.trained}, "
            f"{most.arm} {most.trained}; from {enough.arm} on no further gain can be seen"
        )
    else:
        text = (
            f"The expected effect is not there: as trained {least.arm} recalls {least.trained}, "
            f"{most.arm} {most.trained}"
        )
    shares = f"({least.arm} {least.held}, {most.arm} {most.held})"
    if _apart(least.held, most.held):
        return f"{text}. In other words it recalls more as well {shares}."
    if _apart(most.held, least.held):
        return f"{text}. In other words the smaller rank recalls more {shares}."
    return f"{text}. In other words no difference can be seen {shares}."


def _of_layers(outcomes: Sequence[Outcome]) -> str:
    ranked = sorted(outcomes, key=lambda each: each.held.mean or 0.0)
    worst, best = ranked[0], ranked[-1]
    if not _apart(worst.held, best.held):
        return (
            f"The expected effect is not there: the arms recall between {worst.held} ({worst.arm}) "
            f"and {best.held} ({best.arm}) in other words."
        )
    full = next(each for each in outcomes if each.arm == "all layers")
    less = [each.arm for each in outcomes if _apart(each.held, full.held)]
    beyond = f"; worse than all layers: {', '.join(less)}" if less else ""
    return (
        f"Where the adapter sits decides: in other words {best.arm} recalls {best.held}, "
        f"{worst.arm} {worst.held}{beyond}."
    )


def _of_forms(outcomes: Sequence[Outcome]) -> str:
    one, most = outcomes[0], outcomes[-1]
    if not _apart(one.held, most.held):
        return (
            f"The expected effect is not there: trained in {one.arm} {one.held} come back in other "
            f"words, in {most.arm} {most.held}."
        )
    return (
        f"One wording becomes part of the key: trained in {one.arm} {one.trained} come back as "
        f"trained and {one.held} in other words; in {most.arm} {most.held} do."
    )


def _of_overfitting(outcomes: Sequence[Outcome]) -> str:
    by_name = {each.arm: each for each in outcomes}
    plain, kinder = by_name["80 epochs"], by_name["dropout, decay"]
    shares = (
        f"In other words {plain.held} come back, with dropout and decay {kinder.held}, after 20 "
        f"epochs {by_name['20 epochs'].held}."
    )
    if plain.rise_nats < RISE:
        return (
            f"The expected effect is not there: after 80 epochs the held-out loss is "
            f"{plain.rise_nats:.2f} nats above its least. {shares}"
        )
    down = kinder.rise_nats < plain.rise_nats - RISE / 2
    verdict = "they keep it down" if down else "here they do not keep it down"
    return (
        f"From its least the held-out loss rises by {plain.rise_nats:.2f} nats until epoch 80, "
        f"with dropout and decay by {kinder.rise_nats:.2f}: {verdict}. {shares}"
    )


def _of_merging(outcomes: Sequence[Outcome]) -> str:
    alone = [each for each in outcomes if each.arm.startswith("source")]
    merges = [each for each in outcomes if each not in alone]
    best = max(merges, key=lambda each: each.trained.mean or 0.0)
    worst = min(merges, key=lambda each: each.trained.mean or 0.0)
    before = _together([each.trained for each in alone])
    shares = f"alone {before}; merged by {best.arm} {best.trained}, by {worst.arm} {worst.trained}"
    if not _apart(best.trained, before):
        return (
            f"One holds what three held, as far as can be seen: {shares}. In other words "
            f"{_together([each.held for each in alone])} become {best.held}."
        )
    if not _apart(worst.trained, best.trained):
        return f"Merging loses much, whichever way: {shares}."
    return f"Merging loses, and the way decides how much: {shares}."


def _together(shares: Sequence[Proportion]) -> Proportion:
    """Several shares as one."""
    return wilson(sum(round((s.mean or 0.0) * s.n) for s in shares), sum(s.n for s in shares))


EXPERIMENTS: Mapping[str, Experiment] = {
    "rank": Experiment(
        "How much does a rank hold?",
        "Within one budget a larger rank holds more.",
        "10 digits",
        40,
        _ranks,
        _of_ranks,
    ),
    "layers": Experiment(
        "Which layers learn it?",
        "Adapters on all linear layers recall most; attention alone, or one layer, less.",
        "4 digits",
        40,
        _layers,
        _of_layers,
    ),
    "forms": Experiment(
        "Does one wording do?",
        "Trained in one wording, facts come back in that one and not in others.",
        "4 digits",
        40,
        _forms,
        _of_forms,
    ),
    "overfitting": Experiment(
        "What do dropout and weight decay save?",
        "Trained for too long, held-out loss rises; dropout and decay keep it down.",
        "4 digits",
        24,
        _overfitting,
        _of_overfitting,
    ),
    "merging": Experiment(
        "Does one hold what three hold?",
        "Weight changes of disjoint facts add up: a sum keeps each, a mean loses most.",
        "4 digits",
        12,
        _sources,
        _of_merging,
        ("task_arithmetic", "mean", "ties", "tsv", "refine"),
    ),
}
"""By name."""


# -- one run --------------------------------------------------------------------------------------


def place_of(name: str) -> Path:
    """Where the run of an experiment lies, in the user's cache. Raises ConfigError."""
    if name not in EXPERIMENTS:
        listed = ", ".join(EXPERIMENTS)
        raise ConfigError(f"there is no experiment {name!r}; take one of {listed}.")
    return cache_folder() / "sandbox" / name


def experiment(
    model: Model, name: str, *, seed: int = 0, watch: Watch | None = None
) -> dict[str, Any]:
    """Train the arms of an experiment in one stack and compare them; its record, stored as well.

    `watch.epoch` gets the epochs of the first arm; those of all stand in metrics.jsonl of the run
    as they come. Raises ConfigError, ModelError when an arm diverges, StorageError.
    """
    from lorewright.merging.methods import METHODS, Evidence
    from lorewright.recall.traces import reproduced
    from lorewright.training.filenames import CHECKPOINT_FILE, METRICS_FILE, PARTS_FILE
    from lorewright.training.loop import write_all
    from lorewright.training.rates import suggested_lr

    run, chosen, watch = place_of(name), EXPERIMENTS[name], watch or Watch()
    for old in (RECORD, METRICS_FILE, PARTS_FILE, CHECKPOINT_FILE):
        (run / old).unlink(missing_ok=True)
    config = WriteConfig(lr=suggested_lr(model), seed=seed)
    arms = chosen.arms(config)
    about: dict[str, Any] = {"experiment": name, "question": chosen.question}
    about |= {"expected": chosen.expected, "base": model.name, "seed": seed}
    about |= {"n_facts": chosen.n_facts, "arms": [*(arm.name for arm in arms), *chosen.merges]}
    save_json(about, run / ABOUT)
    watch.step(f"{len(arms)} arms in one stack")
    bodies = {arm.body: _facts(chosen, arm.body) for arm in arms}
    jobs = [
        Job(
            bodies[arm.body][0](arm.forms),
            arm.config,
            held_out=HeldOut(tuple(bodies[arm.body][1])),
        )
        for arm in arms
    ]
    results = write_all(
        model,
        jobs,
        run=run,
        on_epoch=lambda job, epoch: None if job else watch.epoch(epoch),
        advance=watch.advance,
    )
    outcomes, adapters = [], []
    for arm, job, written in zip(arms, jobs, results, strict=True):
        if isinstance(written, Diverged):
            raise ModelError(f"{name}, {arm.name}: {written.why}")
        adapters.append(written.adapter)
        with model.using(written.adapter):
            shares = [reproduced(model, r) for r in (job.examples, job.held_out.examples)]
        outcomes.append(Outcome(arm.name, written.epochs, *shares))
    for method in chosen.merges:
        watch.step(f"merging by {method}")
        merged = METHODS[method](adapters, Evidence(model, [job.examples for job in jobs]))
        with model.using(merged):
            rows = [
                [row for job in jobs for row in job.examples],
                [row for job in jobs for row in job.held_out.examples],
            ]
            outcomes.append(Outcome(method, (), *(reproduced(model, each) for each in rows)))
    sentence = chosen.conclude(outcomes)
    record = about | {"outcomes": [each.to_json() for each in outcomes], "sentence": sentence}
    save_json(record, run / RECORD)
    (run / CHECKPOINT_FILE).unlink(missing_ok=True)
    return record


def _facts(
    chosen: Experiment, body: int = 0
) -> tuple[Callable[[int], list[Example]], list[Example]]:
    """Examples of made-up facts in so many wordings, and the last wording, which is held out."""
    from lorewright.law.calibration import ASKS, Body, made_up

    # The share is part of the name of a body, by which its facts are drawn.
    facts = made_up(Body(chosen.kind, chosen.n_facts, len(ASKS), 1.0 + body)).facts
    rows = [Example(fact.question, fact.answer, source=fact.id) for fact in facts]
    of_form = [rows[form :: len(ASKS)] for form in range(len(ASKS))]
    return lambda forms: [row for each in of_form[:forms] for row in each], of_form[-1]
