"""The backend that runs every pass: the network itself, as transformers has it.

Shape letters: B row, T token, C queried position, X values of a position, D width, M positions, K
blocks of rows, P token that rows share, S token of a row's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorewright.adapters.lora import DoraLinear, Rows, Stacked
from lorewright.adapters.targets import layer_list
from lorewright.models.backends.backend import Entering, Losses, Pass
from lorewright.models.nats import TokenNats, chunked_nats, rows_at_once
from lorewright.models.plain import cache_for

WINDOWS = ("sliding_window", "attention_chunk_size")
"""Settings of a network that say how far it sees."""


class Transformers:
    """Runs a network's body through its own forward."""

    name = "transformers"
    by_weights = False

    def __init__(self, body: nn.Module) -> None:
        self.body: Any = body

    @property
    def reduces(self) -> bool:
        """In float32 on a CPU where layers have weights of their own, as those of DoRA do not."""
        weights = (weight for weight in self.body.parameters() if weight.is_floating_point())
        plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
        return plain and not any(isinstance(m, DoraLinear) for m in self.body.modules())

    def refusal(self, pass_: Pass) -> str | None:
        """None: it runs every pass."""
        return None

    def hidden(self, ids_BT: Tensor, position_BC: Tensor, pass_: Pass) -> Tensor:
        """What the body gives (B, C, X) at the positions; `Backend.hidden`."""
        n_first = pass_.n_shared if self._shares(ids_BT, pass_) else 0
        with pass_.reduced.within(self.body) if pass_.reduced else nullcontext():
            if n_first:
                values_BSX = self._after_shared(ids_BT, pass_)
            else:
                with self._begun(pass_.entering), self._bound(pass_):
                    values_BSX = self.body(input_ids=ids_BT, use_cache=False)[0]
        at_BC = (position_BC - n_first).clamp(min=0)
        return values_BSX[torch.arange(len(ids_BT), device=ids_BT.device)[:, None], at_BC]

    def _shares(self, ids_BT: Tensor, pass_: Pass) -> bool:
        """Whether what rows begin with alike runs once in this pass.

        Not where hidden states enter, where dropout hides other values of every row, where a window
        is shorter than a row, or where the network's cache gives other numbers.
        """
        if not pass_.n_shared or pass_.dropout or (pass_.entering and pass_.entering.layer):
            return False
        config = self.body.config.get_text_config().to_dict()
        windows = [config.get(key) for key in WINDOWS]
        if any(window and ids_BT.shape[1] > window for window in windows):
            return False
        return self._caches

    def _after_shared(self, ids_BT: Tensor, pass_: Pass) -> Tensor:
        """What the body gives (B, S, X) after the tokens that all rows share.

        These run once for each block of rows of one adapter; their keys and values carry gradient.
        """
        rows = pass_.rows or (layer.binding.rows if (layer := self._adapted) else Rows())
        n_blocks = len(rows.blocks)
        block_rows = len(ids_BT) // n_blocks
        cache = cache_for(self.body.config)
        first = replace(pass_, rows=rows.by_block())
        with self._bound(first):
            first_KP = ids_BT[::block_rows, : pass_.n_shared]
            self.body(input_ids=first_KP, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(block_rows)
        with self._bound(pass_):
            own_BS = ids_BT[:, pass_.n_shared :]
            values_BSX: Tensor = self.body(input_ids=own_BS, past_key_values=cache, use_cache=True)[
                0
            ]
        return values_BSX

    @cached_property
    def _caches(self) -> bool:
        """Whether rows go on from a cache as they do without one, tried on a few tokens.

        A cache of another form than transformers' own fails in ways of its own.
        """
        device = next(self.body.parameters()).device
        ids_BT = torch.arange(1, 7, device=device).repeat(2, 1)
        ids_BT[1, 3:] += 1
        base_alone = Pass(Rows(torch.tensor([-1])), n_shared=3)
        with torch.no_grad(), self._bound(base_alone):
            whole_BTX = self.body(input_ids=ids_BT, use_cache=False)[0]
            try:
                own_BSX = self._after_shared(ids_BT, base_alone)
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
                return False
        off = (own_BSX.float() - whole_BTX[:, 3:].float()).abs().max().item()
        noise = max(1e-4, 16 * torch.finfo(whole_BTX.dtype).eps)
        return off <= noise * whole_BTX.float().abs().max().item()

    @torch.no_grad()
    def entering(self, ids_BT: Tensor, layer: int) -> Tensor:
        """What enters a layer (B, T, D): the pass ends there."""
        try:
            with self._noting_after(), replaced(self._layers, {layer: _End()}):
                self.body(input_ids=ids_BT, use_cache=False)
        except _Reached as reached:
            return reached.hidden_BTD
        raise AssertionError(f"layer {layer} did not run")

    def losses(self, head: nn.Module) -> Losses:
        """What scores positions under a head, few logits at a time."""
        n_vocab = len(head.get_parameter("weight"))

        def score(hidden_MD: Tensor, ids_M: Tensor) -> TokenNats:
            return chunked_nats(head, hidden_MD, ids_M, rows_at_once(n_vocab, hidden_MD.device))

        return score

    @property
    def _adapted(self) -> Stacked | None:
        """A layer of the stack that is attached, if there is one."""
        stacked = (module for module in self.body.modules() if isinstance(module, Stacked))
        return next(stacked, None)

    def _bound(self, pass_: Pass) -> AbstractContextManager[None]:
        """Adapted layers read a pass's rows and dropout from their binding, for modules of torch
        take no further argument."""
        if (pass_.rows or pass_.dropout) and (layer := self._adapted):
            return layer.binding.using(pass_.rows, pass_.dropout)
        return nullcontext()

    def _begun(self, entering: Entering | None) -> AbstractContextManager[None]:
        """Inside, the layers below hand hidden states on, the last of them those that are given."""
        if entering is None or not entering.layer:
            return nullcontext()
        layers, last = self._layers, entering.layer - 1
        below = {
            i: _Handing(layers[i], entering.hidden_BTD if i == last else None, self._after)
            for i in range(entering.layer)
        }
        return replaced(layers, below)

    @cached_property
    def _layers(self) -> nn.ModuleList:
        return layer_list(self.body)

    @cached_property
    def _after(self) -> tuple[None, ...] | None:
        """What layers return after their hidden states, in families whose layers return tuples."""
        ids_BT = torch.zeros(1, 1, dtype=torch.long, device=next(self.body.parameters()).device)
        with torch.no_grad(), self._noting_after():
            self.body(input_ids=ids_BT, use_cache=False)
        return self._after

    @contextmanager
    def _noting_after(self) -> Iterator[None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            self._after = (None,) * (len(output) - 1) if isinstance(output, tuple) else None

        handle = self._layers[0].register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def replaced(layers: nn.ModuleList, others: Mapping[int, nn.Module]) -> Iterator[None]:
    """Other modules in place of some layers for the length of a block."""
    before = {i: layers[i] for i in others}
    try:
        for i, module in others.items():
            layers[i] = module
        yield
    finally:
        for i, module in before.items():
            layers[i] = module


class _Handing(nn.Module):
    """In a layer's place: hands on the hidden states that enter, or others."""

    def __init__(
        self, layer: nn.Module, hidden_BTD: Tensor | None, after: tuple[Any, ...] | None
    ) -> None:
        super().__init__()
        self.layer = [layer]  # in a list: no module of this one
        self.hidden_BTD, self.after = hidden_BTD, after

    def __getattr__(self, name: str) -> Any:
        """What decoders read of a layer, its kind of attention say."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"][0], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The hidden states, in a tuple where the layer returns one."""
        out = hidden_states if self.hidden_BTD is None else self.hidden_BTD
        return out if self.after is None else (out, *self.after)


class _Reached(Exception):
    """A pass has come to the layer where it ends."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        super().__init__()
        self.hidden_BTD = hidden_BTD


class _End(nn.Module):
    """In a layer's place: ends the pass."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise _Reached(hidden_states)
