"""Which learning rate: a short stacked write at several rates at once, on the examples themselves.

The right rate moves with rank, objective, optimiser and base, so it is measured. All candidates
train in one stack on one frozen base, which costs less than one after the other.

Knows writes; knows nothing of verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorewright.errors import ConfigError, ModelError
from lorewright.knowledge.data import Example
from lorewright.models.model import Model
from lorewright.training.config import Diverged, Epoch, Job, WriteConfig
from lorewright.training.loop import write_all

FACTORS = (1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""Rates tried, over the rate that the base's width suggests."""
SHARE = 0.25
"""Share of the epoch budget that a trial takes."""
LEAST_EPOCHS = 6
MOST_EXAMPLES = 256
"""Beyond, every k-th example stands for all."""


@dataclass(frozen=True)
class Trial:
    """One rate and what a short write at it came to."""

    lr: float
    loss_nats: float
    """Mean loss per completion token in the last epoch; infinite when it diverged."""
    n_recalled: int
    n_examples: int
    epochs: int
    """Passes it took; a trial that recalls everything ends early."""
    why: str = ""
    """What failed, if it diverged."""


@dataclass(frozen=True)
class RateSearch:
    """The trials, by rate, and the best of them."""

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """Most recalled, then soonest, then least loss; of equals the lower rate."""
        return min(self.trials, key=lambda t: (-t.n_recalled, t.epochs, t.loss_nats, t.lr))

    @property
    def at_the_edge(self) -> bool:
        """Whether the best is the lowest or the highest tried: a wider search may find better."""
        return self.best in (self.trials[0], self.trials[-1])


def find_lr(
    model: Model,
    examples: Sequence[Example],
    config: WriteConfig,
    *,
    rates: Sequence[float] = (),
    contexts: Sequence[str] = (),
    on_epoch: Callable[[float, Epoch], None] = lambda lr, epoch: None,
) -> RateSearch:
    """Write briefly at several rates at once and rank them; the network is as before.

    `rates` default to FACTORS of the suggested one. Raises ConfigError for rates that are not above
    0, ModelError when every trial diverges, and as `write_all`.
    """
    tried = sorted(set(rates or (suggested_lr(model) * factor for factor in FACTORS)))
    if not all(math.isfinite(lr) and lr > 0 for lr in tried):
        raise ConfigError(f"rates must be above 0; got {tried}.")
    step = max(1, -(-len(examples) // MOST_EXAMPLES))
    brief = replace(
        config, epochs=max(LEAST_EPOCHS, round(SHARE * config.epochs)), max_seconds=None
    )
    jobs = [Job(examples[::step], replace(brief, lr=lr), contexts[::step]) for lr in tried]
    done = write_all(model, jobs, on_epoch=lambda job, epoch: on_epoch(tried[job], epoch))
    trials, n_examples = [], len(jobs[0].examples)
    for lr, result in zip(tried, done, strict=True):
        if isinstance(result, Diverged):
            trials.append(Trial(lr, math.inf, 0, n_examples, brief.epochs, result.why))
        else:
            last = result.epochs[-1]
            trials.append(Trial(lr, last.loss_nats, last.n_recalled, n_examples, last.epoch))
    if all(math.isinf(trial.loss_nats) for trial in trials):
        raise ModelError(
            f"no rate from {tried[0]:g} to {tried[-1]:g} worked; at the lowest, {trials[0].why}"
        )
    return RateSearch(tuple(trials))


def suggested_lr(model: Model) -> float:
    """AdamW's peak rate for a base of this width: 5e-4 (2000 / width)^0.78.

    The exponent is the Tinker cookbook's for Llama; wider bases want smaller steps. A start, not a
    law.
    """
    width = int(model.network.config.get_text_config().hidden_size)
    return round(5e-4 * float(2000 / width) ** 0.78, 6)
