"""In-place fast weights, without anything trained beforehand: a text in one pass, no gradient.

    ΔW_down = η Σ_i t_i h_iᵀ

h_i is what a layer's down projection reads at token i, t_i the embedding of token i + 1 at length
1: the layer is pulled towards what came next. The sum goes over the tokens of a chunk; each chunk
is read with the changes of all before it. A sum of outer products has thin factors, so QR and SVD
give the best LoRA adapter of a rank without forming ΔW, and it merges, exports and serves.

Paper: In-Place Test-Time Training, arXiv 2604.06169, whose target is a trained convolution of the
layer's states and a trained projection. Departure: both are fixed to its motivating case, the next
token and the identity, so nothing is trained; the whole change is stored and the text is gone when
a question is asked.

Knows one pass over a text; that reading is not recalling is for `recall` to say.

Shape letters: M tokens of a chunk, T of them with a next one, O out-features (the width), I
in-features.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.config import PLAIN
from lorewright.adapters.lowrank import Factors
from lorewright.adapters.targets import DOWN, named, resolve_targets
from lorewright.errors import ConfigError, DataError
from lorewright.models.model import Model
from lorewright.models.prefix import Reader
from lorewright.training.config import WriteConfig
from lorewright.training.watch import Watch
from lorewright.writers.adapter import AdapterState, reduced
from lorewright.writers.text import token_rows
from lorewright.writers.writer import Cost, Material


@dataclass(frozen=True)
class InPlace:
    """Adds to every down projection what a text's tokens leave there, in one pass."""

    config: WriteConfig

    name = "in-place"
    trains = "nothing: one pass adds outer products to the down projections; stored at --rank"
    leaves = AdapterState.kind
    reads: Literal["text", "lesson"] = "text"
    needs_context = False
    exports = True
    streams = True
    trained_offline = False

    def __post_init__(self) -> None:
        if self.config.lora.variant != PLAIN:
            raise ConfigError(
                f"method 'in-place' stores plain LoRA, not {self.config.lora.variant}; leave the "
                "variant out."
            )

    def write(
        self, model: Model, material: Material, *, seed: int, run: Path | None, watch: Watch
    ) -> tuple[AdapterState, Cost]:
        """Read the material's texts; `seed` decides nothing.

        The rate of the settings is η, their size the tokens of a chunk, None for a row as a whole.
        Raises TargetsNotFound where no layer has a down projection, DataError without a text.
        """
        started = time.monotonic()
        watch.step("reading once")
        rows = token_rows(model, material.knowledge)
        targets = named(model.network, DOWN)
        lora = replace(self.config.lora, targets=targets)
        names = resolve_targets(model.network, targets, lora.layers).names
        fast = FastWeights(self.config.lr, names)
        absorb(model, fast, rows, self.config.size)
        changes = {k: Factors(c.B_OR.float(), c.A_RI.float()) for k, c in fast.factors().items()}
        adapter, held = reduced(model, changes, lora)
        n_tokens = sum(map(len, rows))
        cost = Cost("written", time.monotonic() - started, "transformers", n_tokens=n_tokens)
        return AdapterState(adapter), replace(cost, about={"energy_by_rank": held})


@dataclass(frozen=True)
class FastWeights:
    """What a text has added to some layers so far: the streaming state."""

    rate: float
    """η: what one token adds, over the outer product of its two vectors."""
    names: Sequence[str]
    targets: list[Tensor] = field(default_factory=list)
    """t (T, O) of every chunk, shared by the layers."""
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    """h (T, I) of every chunk, by layer."""

    def factors(self) -> dict[str, Factors]:
        """ΔW of every layer in float64, as the product of thin factors."""
        t_TO = torch.cat(self.targets).double().cpu()
        return {
            name: Factors(self.rate * t_TO.T, torch.cat(self.inputs[name]).double().cpu())
            for name in self.names
        }

    @contextmanager
    def on(self, model: Model) -> Iterator[None]:
        """Have layers add ΔW x to what they give, for the length of a block."""
        with ExitStack() as hooks:
            for name, each in self.factors().items() if self.targets else ():
                delta_OI = (each.B_OR @ each.A_RI).to(model.device, model.dtype)
                layer = model.network.get_submodule(name)
                hook = layer.register_forward_hook(partial(_added, delta_OI))
                hooks.callback(hook.remove)
            yield

    @contextmanager
    def noting(self, model: Model) -> Iterator[dict[str, Tensor]]:
        """What every layer reads (1, M, I) in the next pass of a block, by name."""
        noted: dict[str, Tensor] = {}

        def note(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            noted[name] = args[0].detach()

        with ExitStack() as hooks:
            for name in self.names:
                layer = model.network.get_submodule(name)
                hooks.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
            yield noted


def _added(delta_OI: Tensor, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return y + F.linear(args[0], delta_OI)


@torch.no_grad()
def absorb(
    model: Model, fast: FastWeights, rows: Sequence[Sequence[int]], chunk: int | None
) -> None:
    """Read rows of tokens, each by itself, and add to the fast weights after every chunk.

    A chunk is read with what all before it have added, and attends to its own row. What its last
    token leads to is not known when it is over, so that token adds nothing. Raises DataError where
    no chunk has two tokens.
    """
    embedding = model.network.get_input_embeddings()
    for row in rows:
        reader = Reader(model.network)
        for start in range(0, len(row), chunk or len(row)):
            ids = row[start : start + (chunk or len(row))]
            ids_1M = torch.tensor([ids], device=model.device)
            with fast.on(model), fast.noting(model) as noted:
                reader.read(ids_1M)
            if len(ids) < 2:
                continue
            fast.targets.append(F.normalize(embedding(ids_1M)[0, 1:].float(), dim=-1))
            for name in fast.names:
                fast.inputs.setdefault(name, []).append(noted[name][0, :-1].float())
    if not fast.targets:
        raise DataError("the text has no two tokens in a row, so nothing follows anything.")
