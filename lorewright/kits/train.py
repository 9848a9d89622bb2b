"""Training a kit: states of fresh documents, questions without them, one step of Adam on the kit.

    loss = mean nats of the answers' tokens, the questions alone under each document's state

Knows the loop, its checkpoint and its curriculum; the mathematics is the method's.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.errors import ConfigError, ModelError
from lorewright.files import cache_folder, digest, store
from lorewright.kits.config import TrainConfig
from lorewright.kits.examine import examined, on_card
from lorewright.kits.stream import Lesson, lessons
from lorewright.kits.world import DECLINE
from lorewright.models.model import Batch, Model
from lorewright.training.watch import Watch
from lorewright.writers.kit import Kit, cached_path, rounded
from lorewright.writers.learned import PIECE, Method
from lorewright.writers.methods import LEARNED
from lorewright.writers.pieces import pieces_of
from lorewright.writers.stacked import hidden, nats_of

BETAS, EPS, CLIP = (0.9, 0.99), 1e-8, 1.0
WARM = 0.05
"""Share of the steps over which the rate rises."""
MEMORY = 0.97
"""Weight of the past in the running share of right answers."""
SAVE_EVERY = 50


@dataclass
class Progress:
    """Where a training is."""

    step: int = 0
    facts: int = 1
    right: float = 0.0
    seconds: float = 0.0


def asked_rows(
    model: Model, batch: Sequence[Lesson], declines: bool
) -> tuple[Batch, Tensor, Tensor]:
    """Questions with answers as a batch, their documents (B), and 1 where one is declined (B)."""
    rows, owners, declined = [], [], []
    for n, each in enumerate(batch):
        pairs = [(q, a, 0.0) for q, a in each.answered]
        pairs += [(q, DECLINE, 1.0) for q in each.declined] if declines else []
        rows += [model.render(question, answer) for question, answer, _ in pairs]
        owners += [n] * len(pairs)
        declined += [flag for *_, flag in pairs]
    return model.batch(rows), torch.tensor(owners), torch.tensor(declined)


def outer_loss(
    model: Model, method: Method, kit: Kit, batch: Sequence[Lesson], declines: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean nats of answers' tokens under every document's state; whether each is right; declined.

    An answer is right when every token of it is the argmax after the true ones.
    """
    pieces = pieces_of(model, [each.knowledge for each in batch], int(kit.options[PIECE]))
    rows, owner_B, declined_B = asked_rows(model, batch, declines > 0)
    states = method.states(model, kit, pieces)
    with method.on(model, kit, states, owner_B):
        states_BTD = hidden(model, rows.ids_BT)
    at = rows.mask_BC.bool().nonzero(as_tuple=True)
    hidden_MD = states_BTD[at[0], rows.position_BC[at]]
    target_M = rows.target_BC[at]
    nats_M = nats_of(model, hidden_MD, target_M)
    with torch.no_grad():
        found_M = model.network.get_output_embeddings()(hidden_MD).argmax(-1)
        wrong_B = torch.zeros(len(owner_B)).index_add(0, at[0], (found_M != target_M).float())
    weight_M = torch.where(declined_B[at[0]] > 0, declines, 1.0)
    return (nats_M * weight_M).sum() / weight_M.sum(), wrong_B == 0, declined_B > 0


class Training:
    """One training on its way."""

    def __init__(
        self,
        model: Model,
        method: Method,
        config: TrainConfig,
        options: Mapping[str, float],
        run: Path | None,
    ) -> None:
        """Start, or go on from a checkpoint in `run`; raises ModelError for another training's."""
        unknown = [name for name in options if name not in method.options]
        if unknown:
            raise ConfigError(
                f"option {unknown[0]!r} is unknown to method {method.name!r}; use some of "
                f"{', '.join(method.options)}."
            )
        self.model, self.method, self.config, self.run = model, method, config, run
        self.options = {**method.options, **options}
        generator = torch.Generator().manual_seed(config.seed)
        start = method.start(model, self.options, generator)
        self.weights = {name: w.clone().requires_grad_() for name, w in start.items()}
        self.moments = {
            f"{name}/{k}": torch.zeros_like(w) for name, w in start.items() for k in "mv"
        }
        self.progress = Progress(facts=min(config.first, config.facts))
        plain = {k: v for k, v in asdict(config).items() if k != "steps"}
        self.mark = digest([method.name, self.options, plain, config.steps, model.digest])
        if run and self._path.is_file():
            self._resume()

    @property
    def _path(self) -> Path:
        assert self.run is not None
        return self.run / f"{self.method.name}.checkpoint.safetensors"

    def _resume(self) -> None:
        from safetensors import safe_open

        with safe_open(self._path, framework="pt") as file:
            about = json.loads(file.metadata()["training"])
        if about["mark"] != self.mark:
            raise ModelError(
                f"{self._path} is the checkpoint of a training with other settings; give them "
                "again, or another --out."
            )
        stored = parse_tensors(self._path.read_bytes())
        with torch.no_grad():
            for name, w in self.weights.items():
                w.copy_(stored[name])
        self.moments = {name: stored[name] for name in self.moments}
        self.progress = Progress(**about["progress"])

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.run is None:
            return
        about = json.dumps({"mark": self.mark, "progress": asdict(self.progress)})
        weights = {name: w.detach() for name, w in self.weights.items()}
        store(dump_tensors({**weights, **self.moments}, {"training": about}), self._path)

    def kit(self, about: Mapping[str, Any] | None = None) -> Kit:
        """The kit as it is now."""
        where = self.model.name, self.model.digest
        return Kit(self.method.name, self.weights, self.options, *where, about or {})

    def rate(self) -> float:
        """The learning rate of the step to come."""
        share = self.progress.step / self.config.steps
        falling = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))
        return self.config.lr * min(1.0, (share + 1 / self.config.steps) / WARM) * falling

    def step(self) -> tuple[float, float, float]:
        """One step: its loss, the share of right answers and of right refusals."""
        at, config = self.progress, self.config
        began = time.monotonic()
        n_documents = max(4, config.questions // max(1, round(at.facts * 0.75)))
        batch = lessons(config.seed, at.step, n_documents, at.facts)
        with torch.enable_grad():
            loss, right_B, declined_B = outer_loss(
                self.model, self.method, self.kit(), batch, config.declines
            )
            names = list(self.weights)
            gradients = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        self._descend({n: g for n, g in zip(names, gradients, strict=True) if g is not None})
        answers = right_B[~declined_B].float().mean().item()
        refusals = right_B[declined_B].float().mean().item() if declined_B.any() else math.nan
        at.right = MEMORY * at.right + (1 - MEMORY) * answers
        at.step += 1
        if at.right > config.master and at.facts < config.facts:
            at.facts, at.right = min(2 * at.facts, config.facts), 0.0
        at.seconds += time.monotonic() - began
        return loss.item(), answers, refusals

    @torch.no_grad()
    def _descend(self, gradients: Mapping[str, Tensor]) -> None:
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        if not bool(norm.isfinite()):
            return
        scale, lr, n = (CLIP / norm.clamp(min=CLIP)).item(), self.rate(), self.progress.step + 1
        for name, gradient in gradients.items():
            mean, square = self.moments[f"{name}/m"], self.moments[f"{name}/v"]
            mean.lerp_(gradient * scale, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=scale**2 * (1 - BETAS[1]))
            first, second = mean / (1 - BETAS[0] ** n), square / (1 - BETAS[1] ** n)
            self.weights[name].addcdiv_(first, second.sqrt() + EPS, value=-lr)


def train(
    model: Model,
    method: Method,
    config: TrainConfig,
    *,
    options: Mapping[str, float] | None = None,
    run: Path | None = None,
    watch: Watch | None = None,
) -> Kit:
    """Train a kit to its last step; with a `run` folder the same call goes on where it was."""
    watch = watch or Watch()
    training = Training(model, method, config, options or {}, run)
    at = training.progress
    while at.step < config.steps:
        loss, answers, refusals = training.step()
        note = f"loss {loss:.2f}, right {at.right:.2f}, {at.facts} facts"
        watch.advance("training", at.step, config.steps, note)
        if at.step % SAVE_EVERY == 0 or at.step == config.steps:
            training.save()
            if run:
                row = {**asdict(at), "loss": loss, "answers": answers, "refusals": refusals}
                with (run / "metrics.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
    about = {"steps": at.step, "seconds": round(at.seconds, 1), "training": asdict(config)}
    return training.kit(about)


def trained(
    model: Model,
    name: str,
    config: TrainConfig,
    *,
    options: Mapping[str, float] | None = None,
    out: Path | None = None,
    n_documents: int = 40,
    reopen: Callable[[], Model],
    watch: Watch | None = None,
) -> tuple[Path, Kit]:
    """Train a method's kit, examine it on test documents, and store it with its card.

    Checkpoints lie in the user's cache, so that the same call goes on after an interruption.
    `reopen` loads the base anew, see `examine`. Returns the file and the kit as it reads back.
    """
    watch = watch or Watch()
    settings = digest([name, asdict(config), dict(options or {}), model.digest])
    run = cache_folder() / "kits" / "training" / f"{name}-{settings[:12]}"
    run.mkdir(parents=True, exist_ok=True)
    kit = train(model, LEARNED[name], config, options=options, run=run, watch=watch)
    kit = replace(kit, tensors=rounded(kit.tensors))
    if n_documents:
        watch.step(f"examining it on {n_documents} unseen documents")
        recalls = on_card(examined(model, kit, reopen, n_documents=n_documents, watch=watch))
        kit = replace(kit, about={**kit.about, "recalls": recalls})
    path = out or cached_path(name, model.digest)
    kit.save(path)
    return path, kit
