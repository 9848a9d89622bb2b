"""How an adapter is trained, and what training came to: settings, jobs, epochs, results.

Plain data with its checks. What happens with it is in `write`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorewright.adapter import Adapter
from lorewright.batching import ORDERS
from lorewright.data import Example
from lorewright.errors import ConfigError
from lorewright.lora import LoraConfig
from lorewright.losses import WEIGHTINGS
from lorewright.optim import OPTIMIZERS, OptimizerConfig

OBJECTIVES = (*sorted(WEIGHTINGS), "distill")
SCHEDULES = ("linear", "constant", "cosine", "wsd")
NEARLY = 0.9
"""Share of examples recalled from which certificates are taken and `wsd` lets the rate fall."""


@dataclass(frozen=True)
class WriteConfig:
    """How an adapter is trained."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    objective: str = "sft"
    """Which tokens count: a key of `losses.WEIGHTINGS` (`memft_threshold` is taken at `margin`), or
    `distill`: be as the base is that reads the document."""
    lr: float = 3e-3
    """Peak rate."""
    schedule: str = "linear"
    """How the rate goes from its peak: `linear` or `cosine` to zero over the budget, `constant`, or
    `wsd`: held until nearly all is recalled or two thirds of the budget are spent, then linear to a
    tenth over a third of the epochs it was held."""
    epochs: int = 60
    """Budget in passes over the examples; the stop rule usually ends sooner."""
    batch_size: int = 8
    """Examples a step."""
    optimizer: str = "adamw"
    """A key of `optim.OPTIMIZERS`."""
    lr_ratio: float = 1.0
    """Rate of B over that of A (LoRA+)."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm of an adapter."""
    order: str = "shuffle"
    """`shuffle`, or `curriculum`: easy first by measured loss, nothing left out."""
    margin: float = 0.6
    """Recalled means p > margin at every token of the completion; in [0.5, 1)."""
    rest: float | None = None
    """An example whose every token has p > rest is left out until the next check; None = never.
    Under `memft_threshold` with rest = margin only examples without weight are left out."""
    recheck: int = 4
    """Epochs between two checks of the examples that rest."""
    patience: int = 0
    """Epochs without a newly recalled example after which the loop gives up; 0 = never."""
    max_seconds: float | None = None
    """Seconds of training after which an epoch is the last; None = no limit.

    With it, equal seeds need not give equal bytes.
    """
    seed: int = 0
    trunk: bool = True
    """Compute what enters the first adapted layer once, where that is not the first layer."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name, known in (
            ("objective", OBJECTIVES),
            ("schedule", SCHEDULES),
            ("order", tuple(ORDERS)),
            ("optimizer", tuple(sorted(OPTIMIZERS))),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r} is unknown; use one of {', '.join(known)}."
                )
        if not 0.5 <= self.margin < 1:
            raise ConfigError(f"margin must lie in [0.5, 1); found {self.margin}.")
        if self.rest is not None and not self.margin <= self.rest < 1:
            raise ConfigError(
                f"rest must lie in [margin, 1), where margin is {self.margin}; found {self.rest}."
            )
        for name in ("epochs", "batch_size", "recheck", "patience", "seed"):
            value, least = getattr(self, name), 0 if name in ("patience", "seed") else 1
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be a whole number from {least}; found {value!r}.")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr must be above 0; found {self.lr}.")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ConfigError(f"max_seconds must be above 0; found {self.max_seconds}.")
        self.moving  # noqa: B018 - checks clip, ratio and decay

    @property
    def moving(self) -> OptimizerConfig:
        """The optimiser's part of this."""
        return OptimizerConfig(self.optimizer, self.lr_ratio, self.weight_decay, self.clip)


@dataclass(frozen=True)
class Job:
    """One write: what to learn and how."""

    examples: Sequence[Example]
    config: WriteConfig
    contexts: Sequence[str] = ()
    """For `distill`: what the teacher reads before each prompt; an empty one is no document."""
    start: Adapter | None = None
    """An adapter of config.lora's form to go on from; None = a first A drawn by its seed, B = 0."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the examples came to."""

    epoch: int
    epochs: int
    loss_nats: float
    """Mean loss per completion token of what was trained in the pass, before weighting."""
    n_recalled: int
    """Examples whose every token had p > margin: after the epoch, or as they were last met."""
    n_examples: int
    certified: bool
    """Whether n_recalled was counted after the epoch, with the weights as they are now."""
    lr: float
    seconds: float
    """Training time since the write began, over all interruptions."""
    n_trained: int = 0
    """Examples that were trained in the pass; the others rested."""


@dataclass(frozen=True)
class Written:
    """An adapter and the account of its training."""

    adapter: Adapter
    epochs: tuple[Epoch, ...]
    reason: str
    """Why the loop ended: `recalled`, `budget`, `patience`, `seconds` or `nothing left` to do."""

    @property
    def complete(self) -> bool:
        """Whether every example is certified to be recalled."""
        return self.reason == "recalled"


@dataclass(frozen=True)
class Diverged:
    """A write whose loss or weights are no longer numbers, or that cannot learn."""

    why: str
    epochs: tuple[Epoch, ...]


# Rates and endings: functions of the epochs so far, so that a resumed write agrees with itself


def rate(config: WriteConfig, records: Sequence[Epoch], epochs_done: float) -> float:
    """The rate after so many epochs, of which `records` are the whole ones."""
    done = min(1.0, epochs_done / config.epochs)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "linear":
        return config.lr * (1 - done)
    nearly = (e.epoch for e in records if e.n_recalled >= NEARLY * e.n_examples)
    held = min(next(nearly, math.inf), config.epochs * 2 / 3)
    fallen = (epochs_done - held) / max(2.0, held / 3)
    return config.lr * min(1.0, max(0.1, 1 - 0.9 * fallen))


def ending(records: Sequence[Epoch], config: WriteConfig) -> str | None:
    """Why the loop should end after these epochs; None to go on."""
    if not records:
        return None
    last = records[-1]
    if last.certified and last.n_recalled == last.n_examples:
        return "recalled"
    if last.epoch >= config.epochs:
        return "budget"
    if config.max_seconds is not None and last.seconds >= config.max_seconds:
        return "seconds"
    best = max(record.n_recalled for record in records)
    since = last.epoch - next(record.epoch for record in records if record.n_recalled == best)
    return "patience" if config.patience and since >= config.patience else None
