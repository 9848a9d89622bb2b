"""Write examples into an adapter: the one training loop.

Answer-only logits, batches of similar length, AdamW with a linear fall to zero, A and B in float32.
The loop stops when every completion is recalled: greedy decoding reproduces it, by the certificate
of p > margin at every token. It never stops on a loss. A checkpoint after an epoch holds everything
that the next one needs, so an interrupted run continues and gives the same bytes on the same
machine.

This room knows models, examples and objectives. It knows nothing of probes, folders of memories or
reports; the verdict is taken elsewhere, on questions that were not trained.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.adapter import Adapter, capture
from lorewright.data import Example, digest
from lorewright.errors import ConfigError, DataError, ModelError, StorageError
from lorewright.lora import LoraConfig, Stack, attach
from lorewright.losses import WEIGHTINGS, Weighting, threshold, token_nats, weighted_mean
from lorewright.model import Model, Rendered

ORDERS = ("shuffle", "curriculum")
CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 2.0
"""Least time between two checkpoints, which cost more than an epoch of a few examples."""


@dataclass(frozen=True)
class WriteConfig:
    """How an adapter is trained."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    objective: str = "sft"
    """Which tokens count: a key of `losses.WEIGHTINGS`; `memft_threshold` is taken at `margin`."""
    lr: float = 3e-3
    """Peak rate of AdamW; falls linearly to zero over the budget."""
    epochs: int = 60
    """Budget in passes over the examples; the stop rule usually ends sooner."""
    batch_size: int = 8
    """Examples a step."""
    clip: float = 1.0
    """Largest gradient norm."""
    order: str = "shuffle"
    """`shuffle`, or `curriculum`: short completions first at the start, nothing left out."""
    margin: float = 0.6
    """Recalled means p > margin at every token of the completion; in [0.5, 1)."""
    patience: int = 0
    """Epochs without a newly recalled example after which the loop gives up; 0 = never."""
    max_seconds: float | None = None
    """Seconds of training after which an epoch is the last; None = no limit.

    With it, equal seeds need not give equal bytes.
    """
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if self.objective not in WEIGHTINGS:
            raise ConfigError(
                f"objective {self.objective!r} is unknown; use one of "
                f"{', '.join(sorted(WEIGHTINGS))}."
            )
        if self.order not in ORDERS:
            raise ConfigError(f"order {self.order!r} is unknown; use one of {', '.join(ORDERS)}.")
        if not 0.5 <= self.margin < 1:
            raise ConfigError(f"margin must lie in [0.5, 1); found {self.margin}.")
        for name in ("lr", "epochs", "batch_size", "clip"):
            if not asdict(self)[name] > 0:
                raise ConfigError(f"{name} must be above 0; found {asdict(self)[name]}.")


@dataclass(frozen=True)
class Epoch:
    """What one pass over the examples came to."""

    epoch: int
    epochs: int
    loss_nats: float
    """Mean loss per completion token over the pass, before weighting."""
    n_recalled: int
    """Examples whose every token had p > margin: after the epoch, or as they were met in it."""
    n_examples: int
    certified: bool
    """Whether n_recalled was counted after the epoch, with the weights as they are now."""
    lr: float
    seconds: float
    """Training time since the write began, over all interruptions."""


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


def write(
    model: Model,
    examples: Sequence[Example],
    config: WriteConfig,
    *,
    run: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Written:
    """Train one adapter on the examples until every completion is recalled or the budget is spent.

    With a `run` folder, metrics go to metrics.jsonl and a checkpoint is kept; the same call on the
    same folder resumes, and reports its past epochs again. Raises DataError for no examples or one
    that does not fit the context, ConfigError when the folder holds another write's checkpoint,
    ModelError when loss or weights are no longer numbers or a layer learns nothing, StorageError
    when the disk refuses. The network is as before in every case.
    """
    if not examples:
        raise DataError("write was asked to learn nothing: there are no examples; check the views.")
    rows = [model.render(example.prompt, example.completion) for example in examples]
    stack = attach(model.network, [config.lora])
    try:
        optimizer = torch.optim.AdamW(stack.parameters(), lr=config.lr, weight_decay=0.0)
        saved = _Saved(run, fingerprint(model, examples, config))
        records = saved.load(stack, optimizer)
        for record in records:
            on_epoch(record)
        started = time.monotonic() - (records[-1].seconds if records else 0.0)
        reason = ending(records, config)
        while reason is None:
            n_done = len(records)
            loss_nats, n_recalled, n_active = _train_epoch(
                model, stack, optimizer, rows, config, n_done
            )
            if n_done == 0 and n_recalled < len(rows):
                _check_every_layer_learns(stack)
            # As-trained counts lag behind the weights: certify only when they are nearly complete.
            certified = n_recalled >= 0.9 * len(rows) or n_done + 1 == config.epochs
            if certified:
                n_recalled = _n_certified(model, rows, config.margin)
            records.append(
                Epoch(
                    n_done + 1,
                    config.epochs,
                    loss_nats,
                    n_recalled,
                    len(rows),
                    certified,
                    _lr(config, n_done + 1),
                    round(time.monotonic() - started, 3),
                )
            )
            reason = ending(records, config) or ("nothing left" if n_active == 0 else None)
            saved.save(stack, optimizer, records, force=reason is not None)
            on_epoch(records[-1])
        adapter = capture(stack, 0, base_id=model.name, base_digest=model.digest)
        if not all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values()):
            raise ModelError(f"the last steps left weights of no number; lower lr ({config.lr}).")
        return Written(adapter, tuple(records), reason)
    finally:
        stack.detach()


def _train_epoch(
    model: Model,
    stack: Stack,
    optimizer: torch.optim.Optimizer,
    rows: list[Rendered],
    config: WriteConfig,
    n_done: int,
) -> tuple[float, int, int]:
    """One pass: mean nats per token, examples recalled as they were met, tokens with weight."""
    weighting = _weighting(config)
    groups = batches(rows, config, n_done)
    nats, n_tokens, n_recalled, n_active = 0.0, 0, 0, 0
    for done, group in enumerate(groups):
        rate = _lr(config, n_done + done / len(groups))
        for param_group in optimizer.param_groups:
            param_group["lr"] = rate
        batch = model.batch([rows[i] for i in group])
        loss_BC, right_BC = token_nats(model.completion_logits(batch), batch.target_BC)
        weight_BC = weighting(loss_BC.detach(), right_BC) * batch.mask_BC
        loss = weighted_mean(loss_BC, weight_BC, batch.mask_BC)
        with torch.no_grad():
            safe_BC = (loss_BC < -math.log(config.margin)) | (batch.mask_BC == 0)
            tally = torch.stack(
                [
                    (loss_BC * batch.mask_BC).sum(),
                    batch.mask_BC.sum(),
                    safe_BC.all(1).sum(),
                    (weight_BC > 0).sum(),
                ]
            ).tolist()
        if not math.isfinite(tally[0]):
            raise ModelError(
                f"the loss is {tally[0]} in epoch {n_done + 1}; lower lr (it is {config.lr})."
            )
        nats, n_tokens = nats + tally[0], n_tokens + int(tally[1])
        n_recalled, n_active = n_recalled + int(tally[2]), n_active + int(tally[3])
        if tally[3] == 0:
            continue
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stack.parameters(), config.clip)
        optimizer.step()
    return nats / n_tokens, n_recalled, n_active


def _weighting(config: WriteConfig) -> Weighting:
    """The objective's weighting, with its threshold where the stop rule has it.

    At the paper's ln 2 a token between 1/2 and the margin has no weight and never gets further.
    """
    if config.objective == "memft_threshold":
        return threshold(-math.log(config.margin))
    return WEIGHTINGS[config.objective]


def _check_every_layer_learns(stack: Stack) -> None:
    """Raise ModelError for layers whose B is still zero: AdamW moves every B with a gradient."""
    idle = [name for name, layer in stack.modules.items() if not layer.B_NOR.any()]
    if idle:
        raise ModelError(
            f"{len(idle)} of {len(stack.modules)} adapted layers got no gradient in a whole epoch, "
            f"the first is {idle[0]!r}; leave them out of targets."
        )


def _lr(config: WriteConfig, epochs_done: float) -> float:
    """The rate after so many epochs: linear to zero over the budget."""
    return config.lr * max(0.0, 1 - epochs_done / config.epochs)


def batches(rows: Sequence[Rendered], config: WriteConfig, n_done: int) -> list[list[int]]:
    """Indices of epoch `n_done` in batches of similar length, in an order drawn from (seed, epoch).

    Every row occurs once. `curriculum` sorts by completion length in the first third of the budget.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{n_done}".encode()))
    order: list[int] = torch.randperm(len(rows), generator=generator).tolist()
    size = config.batch_size
    if config.order == "curriculum" and n_done < config.epochs / 3:
        order.sort(key=lambda i: len(rows[i].completion_ids))
        return [order[i : i + size] for i in range(0, len(order), size)]
    span = 8 * size
    chunks = [
        sorted(order[i : i + span], key=lambda i: len(rows[i])) for i in range(0, len(order), span)
    ]
    groups = [chunk[i : i + size] for chunk in chunks for i in range(0, len(chunk), size)]
    shuffled: list[int] = torch.randperm(len(groups), generator=generator).tolist()
    return [groups[i] for i in shuffled]


@torch.no_grad()
def _n_certified(model: Model, rows: list[Rendered], margin: float) -> int:
    """Examples with p > margin at every completion token, with the weights as they are."""
    limit = -math.log(margin)
    n = 0
    for start in range(0, len(rows), 64):
        batch = model.batch(rows[start : start + 64])
        loss_BC, _ = token_nats(model.completion_logits(batch), batch.target_BC)
        n += int(((loss_BC < limit) | (batch.mask_BC == 0)).all(1).sum())
    return n


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


def suggested_lr(model: Model) -> float:
    """AdamW's peak rate for a base of this width: 5e-4 (2000 / width)^0.78.

    The exponent is the Tinker cookbook's for Llama; wider bases want smaller steps. A start, not a
    law.
    """
    width = int(model.network.config.get_text_config().hidden_size)
    return round(5e-4 * float(2000 / width) ** 0.78, 6)


def fingerprint(model: Model, examples: Sequence[Example], config: WriteConfig) -> str:
    """Digest of everything that the result depends on: base, template, examples, configuration."""
    return digest(
        [model.digest, model.template_digest, [asdict(e) for e in examples], asdict(config)]
    )


class _Saved:
    """The run folder's checkpoint: a safetensors file of weights, moments and the epochs so far."""

    def __init__(self, run: Path | None, mark: str) -> None:
        self.run, self.mark, self.last, self.appending = run, mark, -math.inf, False

    def load(self, stack: Stack, optimizer: torch.optim.Optimizer) -> list[Epoch]:
        if self.run is None or not (self.run / CHECKPOINT).exists():
            return []
        path = self.run / CHECKPOINT
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
            mark, records = about["fingerprint"], [Epoch(**row) for row in about["epochs"]]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be resumed from ({error}); delete the run folder to start again."
            ) from error
        if mark != self.mark:
            raise ConfigError(
                f"{self.run} holds an interrupted write of other examples, settings or base; "
                "finish that one with its own settings, or delete the folder."
            )
        with torch.no_grad():
            for i, weight in enumerate(stack.parameters()):
                weight.copy_(tensors[f"weight.{i}"])
                optimizer.state[weight] = {
                    "step": tensors[f"step.{i}"],
                    "exp_avg": tensors[f"exp_avg.{i}"].to(weight.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{i}"].to(weight.device),
                }
        return records

    def save(
        self, stack: Stack, optimizer: torch.optim.Optimizer, records: list[Epoch], *, force: bool
    ) -> None:
        if self.run is None:
            return
        rows = [asdict(record) for record in records]
        part = self.run / (CHECKPOINT + ".part")
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            # The first write after a start or a resume drops epochs that the checkpoint lacks.
            with open(self.run / "metrics.jsonl", "a" if self.appending else "w") as log:
                log.writelines(
                    json.dumps(row) + "\n" for row in (rows[-1:] if self.appending else rows)
                )
            self.appending = True
            if not force and time.monotonic() - self.last < CHECKPOINT_SECONDS:
                return
            about = json.dumps({"fingerprint": self.mark, "epochs": rows})
            # Not safetensors' save_file: its error for a full disk is no OSError.
            part.write_bytes(dump_tensors(_state(stack, optimizer), {"about": about}))
            os.replace(part, self.run / CHECKPOINT)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise StorageError(
                f"the checkpoint could not be written to {self.run}: {error}; free some space and "
                "write again, it goes on from the last one."
            ) from error
        self.last = time.monotonic()


def _state(stack: Stack, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for i, weight in enumerate(stack.parameters()):
        moments = optimizer.state.get(weight) or {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
        state[f"weight.{i}"] = weight.detach().contiguous()
        state |= {
            f"{name}.{i}": moments[name].contiguous() for name in ("step", "exp_avg", "exp_avg_sq")
        }
    return state
