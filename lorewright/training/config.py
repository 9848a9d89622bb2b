"""What a write starts from and what it reports: settings, presets, jobs, epochs, results.

Plain data with its checks; importing it loads no torch. What happens with it is in `loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lorewright.adapters.config import DORA, LoraConfig
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example
from lorewright.training.schedules import SCHEDULES, Elapsed

if TYPE_CHECKING:
    from lorewright.adapters.adapter import Adapter
    from lorewright.training.objectives import Objective
    from lorewright.training.optimisers import OptimizerConfig

NEARLY = 0.9
"""Share of examples recalled from which certificates are taken and the rate of `wsd` falls."""


AUTO, FLOAT32, BFLOAT16 = "auto", "float32", "bfloat16"
ARITHMETICS = (AUTO, FLOAT32, BFLOAT16)


@dataclass(frozen=True)
class WriteConfig:
    """How an adapter is trained."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    objective: str = "sft"
    """Which tokens count: sft, all; memft_threshold, those not above the margin; memft_window,
    those from the first error on; distill: all, taught by the base that reads the document."""
    lr: float = 3e-3
    """Peak learning rate."""
    schedule: str = "linear"
    """How the rate goes from its peak.

    `linear` or `cosine` to zero over the budget; `constant`; `restart`, linear to zero over three
    fifths of the budget, then from half the peak over the rest; `wsd`: held until nearly all is
    recalled or two thirds of the budget are spent, then linear to a tenth over a third of the
    epochs it was held.
    """
    epochs: int = 60
    """Budget in passes over the examples; most writes end sooner, when all is recalled."""
    batch_size: int = 8
    """Examples a step."""
    optimizer: str = "adamw"
    """How gradients become steps."""
    lr_ratio: float = 1.0
    """Rate of B over that of A (LoRA+)."""
    weight_decay: float = 0.0
    """Share of a weight, times the rate, by which each step shrinks it."""
    dropout: float = 0.0
    """Share of what A reads that a training step hides; in [0, 1).

    What is weighted, what rests and when it ends go by passes without it.
    """
    clip: float = 1.0
    """Largest gradient norm of an adapter."""
    order: str = "shuffle"
    """Order of the examples: shuffle, or curriculum: easy first, by measured loss."""
    margin: float = 0.6
    """Recalled means p above this at every token of the completion; in [0.5, 1)."""
    rest: float | None = None
    """Leave out examples with every p above this until the next check; 0 = never.

    An epoch has four batches at least: a few that do not rest are trained several times.
    Under `memft_threshold` with rest = margin only examples without weight are left out.
    """
    rehearsal: float = 0.4
    """Largest share of an epoch's tokens that are rehearsed: a different slice of these
    examples each time; in [0, 0.9]."""
    null_space: float = 0.9
    """Share of what the base reads of the rehearsed questions that the adapter does not see, so
    that their answers stay; in [0, 1], 0 = it sees all."""
    recheck: int = 4
    """Epochs between two checks of the examples that rest."""
    patience: int = 0
    """Epochs without a newly recalled example, or token above 1/2, after which training gives up;
    0 = never."""
    max_seconds: float | None = None
    """Seconds of training after which an epoch is the last; 0 = no limit.

    With it, equal seeds need not give equal bytes.
    """
    size: int | None = None
    """Of what is no adapter: vectors of a prompt, positions of a prefix, width of a bottleneck,
    tokens of a chunk in place; 0 = the method's own."""
    kit: str = ""
    """File of a kit, for methods that need one; empty = the base's, trained here or shipped."""
    seed: int = 0
    """Seed of all draws: same seed, same machine, same bytes."""
    trunk: bool = True
    """Compute what enters the first adapted layer once, where that is not the first layer."""
    arithmetic: str = AUTO
    """In what the frozen layers multiply: float32, bfloat16, or auto: the faster here."""

    def __post_init__(self) -> None:
        """Check every field."""
        # Here, so that the fields and their defaults can be read without torch.
        from lorewright.models.batching import ORDERS
        from lorewright.training.objectives import OBJECTIVES
        from lorewright.training.optimisers import OPTIMIZERS

        choices = {
            "objective": sorted(OBJECTIVES),
            "schedule": SCHEDULES,
            "order": ORDERS,
            "optimizer": sorted(OPTIMIZERS),
            "arithmetic": ARITHMETICS,
        }
        for name, options in choices.items():
            if (value := getattr(self, name)) not in options:
                raise ConfigError(f"{name} {value!r} is unknown; use one of {', '.join(options)}.")
        rules = [
            ("margin", 0.5 <= self.margin < 1, "lie in [0.5, 1)"),
            (
                "rest",
                self.rest is None or self.margin <= self.rest < 1,
                f"lie in [margin, 1), where margin is {self.margin}",
            ),
            ("rehearsal", 0 <= self.rehearsal <= 0.9, "lie in [0, 0.9]"),
            ("null_space", 0 <= self.null_space <= 1, "lie in [0, 1]"),
            ("dropout", 0 <= self.dropout < 1, "lie in [0, 1)"),
            ("lr", 0 < self.lr < math.inf, "be above 0"),
            ("max_seconds", self.max_seconds is None or self.max_seconds > 0, "be above 0"),
            (
                "size",
                self.size is None or (type(self.size) is int and self.size >= 1),
                "be a whole number from 1, or nothing",
            ),
        ]
        least = {"epochs": 1, "batch_size": 1, "recheck": 1, "patience": 0, "seed": 0}
        for name, lowest in least.items():
            whole = type(getattr(self, name)) is int and getattr(self, name) >= lowest
            rules.append((name, whole, f"be a whole number from {lowest}"))
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"{name} must {rule}; got {getattr(self, name)!r}.")
        if self.lora.variant == DORA and self.optimizer != "adamw":
            raise ConfigError(
                f"optimizer {self.optimizer!r} goes by pairs of A and B; a DoRA adapter has "
                "magnitudes as well; use adamw, or variant lora."
            )
        self.optimizing  # noqa: B018 - checks clip, ratio and decay

    def to_json(self) -> dict[str, Any]:
        """As cards and digests have it; a field that came later is left out at its default.

        So checkpoints, calibrations and ids of before stay what they are.
        """
        plain = asdict(self) | {"lora": self.lora.to_json()}
        later = {
            "dropout": 0.0,
            "arithmetic": AUTO,
            "rehearsal": 0.4,
            "null_space": 0.9,
            "size": None,
            "kit": "",
        }
        return {k: v for k, v in plain.items() if k not in later or v != later[k]}

    def build_objective(self) -> Objective:
        """The objective that the name stands for."""
        from lorewright.training.objectives import OBJECTIVES

        return OBJECTIVES[self.objective](self.margin)

    @property
    def optimizing(self) -> OptimizerConfig:
        """The optimiser's part of this."""
        from lorewright.training.optimisers import OptimizerConfig

        return OptimizerConfig(self.optimizer, self.lr_ratio, self.weight_decay, self.clip)


# Presets: what a write is for, in settings that fit the size of the data

DRILLED = 0.9
"""p of every token from which `drill` lets an example rest."""
GENERALISING = (
    (100, 0.15, 0.1),
    (1_000, 0.1, 0.05),
    (10_000, 0.05, 0.01),
    (100_000, 0.0, 0.01),
)
"""Examples, dropout, weight decay: the ends of the ranges that practice gives by size of the data.

Below 1,000 examples 0.1 to 0.15 and 0.05 to 0.1; to 10,000 0.05 to 0.1 and 0.01 to 0.05; to 100,000
0 to 0.05 and 0.01; above, 0 and 0.01. That the smallest data, with the most, end at 100 is ours.
"""


def exact(config: WriteConfig, n_examples: int) -> WriteConfig:
    """The settings as they are: for text that is to be recalled to the letter."""
    return config


def generalise(config: WriteConfig, n_examples: int) -> WriteConfig:
    """The settings with dropout and weight decay by the size of the data; those set above 0 stay.

    Between the ends of a range, which the advice leaves open, both fall linearly in the logarithm
    of the number of examples, so that one example more never makes a jump.
    """
    import numpy as np

    if n_examples < 1:
        raise ConfigError(f"a preset needs at least one example; got {n_examples}.")
    sizes, dropouts, decays = zip(*GENERALISING, strict=True)
    dropout, decay = (
        round(float(np.interp(math.log10(n_examples), np.log10(sizes), values)), 4)
        for values in (dropouts, decays)
    )
    return replace(
        config,
        dropout=config.dropout or dropout,
        weight_decay=config.weight_decay or decay,
    )


def drill(config: WriteConfig, n_examples: int) -> WriteConfig:
    """The settings that recall facts after the least time.

    `whitened`; what is safe rests; the rate begins anew for what is left when it is gone. Chosen on
    random numbers and short answers (`benchmarks/write_speed.py`), not for what transfers. A `rest`
    that is set stays.
    """
    from lorewright.training.optimisers import WHITENED

    rest = config.rest or max(DRILLED, config.margin)
    return replace(config, optimizer=WHITENED, rest=rest, schedule="restart")


Preset = Callable[[WriteConfig, int], WriteConfig]
"""(settings, number of examples) -> the settings that are trained with."""
PRESETS: dict[str, Preset] = {"exact": exact, "drill": drill, "generalise": generalise}


def preset_of(name: str) -> Preset:
    """A preset by name. Raises ConfigError with the names there are."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS)}.")
    return PRESETS[name]


MOST_ROWS = 64
"""Most questions that are measured after an epoch."""
SHARE = 0.02
"""Largest share of a write's passes that held-out questions may take."""
PASSES_TRAINED = 3
"""What training on an example takes, in passes that train nothing: forward, and twice back."""


@dataclass(frozen=True)
class HeldOut:
    """Examples that are measured and never trained, and after which epochs."""

    examples: tuple[Example, ...] = ()
    every: int = 1
    """After every so many epochs."""

    @classmethod
    def of(cls, examples: Sequence[Example], n_trained: int, *, closely: bool = False) -> HeldOut:
        """At most MOST_ROWS of these, spread; as often as SHARE allows, or each time if `closely`.

        `n_trained` is the number of examples of an epoch.
        """
        chosen = tuple(examples[:: max(1, -(-len(examples) // MOST_ROWS))])
        affordable = max(1.0, SHARE * PASSES_TRAINED * n_trained)
        return cls(chosen, 1 if closely else max(1, math.ceil(len(chosen) / affordable)))


@dataclass(frozen=True)
class Job:
    """One write: what to learn and how."""

    examples: Sequence[Example]
    config: WriteConfig
    contexts: Sequence[str] = ()
    """For an objective with a teacher: what that reads before each prompt; "" is no document."""
    start: Adapter | None = None
    """An adapter of config.lora's form to go on from; None = a first A drawn by its seed, B = 0."""
    objective: Objective | None = None
    """Used in place of the one that config.objective names; None = that one."""
    held_out: HeldOut = field(default_factory=HeldOut)
    """Measured after epochs and never trained."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the write is to end after the epoch that is over; its adapter is whole."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the examples came to."""

    epoch: int
    epochs: int
    loss_nats: float
    """Mean loss per completion token of what was trained in the pass, before weighting."""
    n_recalled: int
    """Examples whose every token had p > margin: after the epoch, or when they last ran."""
    n_examples: int
    """Those to be learnt; what is rehearsed does not count."""
    certified: bool
    """Whether n_recalled was counted after the epoch, with the weights as they are now."""
    lr: float
    seconds: float
    """Training time since the write began, over all interruptions."""
    n_trained: int = 0
    """Examples that were trained in the pass; the others rested."""
    held_out_nats: float | None = None
    """Mean loss per completion token of questions that are not trained; None = not measured."""
    held_out_recalled: int | None = None
    """Those of them whose every token is the likeliest after the true ones."""
    n_held_out: int = 0
    n_doubtful: int | None = None
    """Tokens of the examples to be learnt with p < 1/2 when they last ran; None = not counted."""
    n_tokens: int = 0
    """Tokens of these examples in all."""


@dataclass(frozen=True)
class Part:
    """How far an epoch is that is not over, and what it came to until then."""

    epoch: int
    epochs: int
    done: float
    """Share of its steps that are over."""
    loss_nats: float
    """Mean loss per completion token of what these steps trained, before weighting."""
    n_tokens: int
    """Completion tokens that it is the mean of."""


@dataclass(frozen=True)
class Written:
    """An adapter and the account of its training."""

    adapter: Adapter
    epochs: tuple[Epoch, ...]
    reason: str
    """Why training ended: a name in `stopping.STOPS`."""
    arithmetics: tuple[str, ...] = (FLOAT32,)
    """In what frozen layers of float32 multiplied, in order: one, or bfloat16 and then float32."""

    @property
    def complete(self) -> bool:
        """Whether every example is certified to be recalled."""
        return self.reason == "recalled"


@dataclass(frozen=True)
class Diverged:
    """A write whose loss or weights are no longer numbers, or that cannot learn."""

    why: str
    epochs: tuple[Epoch, ...]


def rate(config: WriteConfig, records: Sequence[Epoch], epochs_done: float) -> float:
    """The learning rate after so many epochs, of which `records` are the whole ones."""
    nearly = (e.epoch for e in records if e.n_recalled >= NEARLY * e.n_examples)
    elapsed = Elapsed(epochs_done, config.epochs, next(nearly, math.inf))
    return SCHEDULES[config.schedule](config.lr, elapsed)
