"""A decoder's layers in compiled code: what is true of the network, and one pass over a batch.

Shape letters: B row, T token, C position asked for, D width, N adapters of the stack, P values of
one adapter, Z parts of a batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lorewright.adapters.lora import LoraLinear
from lorewright.models.backends.compiled.buffers import Panels, Spare, floats, state
from lorewright.models.backends.compiled.build import load
from lorewright.models.backends.compiled.layout import (
    CDecoder,
    CLayer,
    CLinear,
    CNorm,
    CPart,
    CPass,
)

MOST_BYTES = 1 << 28
"""Of a decoder's frozen weights, of which copies are made."""
PIECE_TOKENS = 160
"""Of a part that needs no gradient: what a core's cache holds."""

Turns = Callable[[int], tuple[Tensor, Tensor]]
"""Cosines and sines (T, E/2) of so many positions, with the root of attention's scale in them."""


class Described(NamedTuple):
    """A network as decoder.c has it."""

    net: CDecoder
    loras: list[LoraLinear]
    """Its adapted modules, in model order."""
    n_values: int
    """P of one adapter's gradients."""
    held: list[Any]
    """What `net` points to."""


class Network:
    """A decoder's layers as decoder.c has them, for as long as they stay as they are."""

    def __init__(
        self, library: ctypes.CDLL, decoder: Any, layers: Sequence[Any], turns: Turns
    ) -> None:
        self.library = library
        self.decoder, self.layers, self.turns = decoder, list(layers), turns
        self._panels = Panels(library)
        self._known: tuple[list[Any], Described] | None = None
        # What a layer's parts are changes when adapters come and go; their dictionaries stay.
        self._inside = [decoder._modules] + [
            m._modules for x in self.layers for m in (x, x.self_attn, x.mlp)
        ]
        self.spare = Spare()

    @classmethod
    def of(cls, decoder: Any, layers: Sequence[Any], turns: Turns) -> tuple[Network | None, str]:
        """The layers as compiled code runs them, or None, and a few words on which or why not."""
        n_bytes = sum(weight.nbytes for layer in layers for weight in layer.parameters())
        if n_bytes > MOST_BYTES:
            return None, f"the base has more than {MOST_BYTES >> 20} MiB"
        shapes = [[tuple(w.shape) for w in layer.parameters()] for layer in layers]
        around = (decoder.embed_tokens.weight, decoder.norm.weight)
        every = [*around, *(weight for layer in layers for weight in layer.parameters())]
        dtypes = {weight.dtype for weight in every}
        if dtypes != {torch.float32} or any(shape != shapes[0] for shape in shapes):
            return None, "its layers differ or are not all float32"
        library, says = load()
        return (None if library is None else cls(library, decoder, layers, turns)), says

    def described(self, n_tokens: int) -> Described:
        """The network as it is now, for texts of so many tokens."""
        cos, sin = self.turns(n_tokens)
        now: list[Any] = [cos.data_ptr()]
        for inside in self._inside:
            for module in inside.values():
                within = module._modules
                if within and type(module) is LoraLinear:
                    now.append((id(module), *map(_place, module._parameters.values())))
                    now.append((_place(module._buffers["scale_N"]), *module.ranks_N))
                    module = within["base"]
                weight = module._parameters.get("weight")
                if weight is not None:
                    now.append((*state(weight), _place(module._parameters.get("bias"))))
        known = self._known
        if known is None or known[0] != now:
            self._known = known = now, self._describe(cos, sin)
        return known[1]

    def _describe(self, cos: Tensor, sin: Tensor) -> Described:
        attention = self.layers[0].self_attn
        width = int(attention.head_dim)
        q_out, d = _plain(attention.q_proj).weight.shape
        k_out = len(_plain(attention.k_proj).weight)
        layers, n_values, below = (CLayer * len(self.layers))(), 0, False
        loras: list[LoraLinear] = []
        held: list[Any] = [cos, sin]
        for to, layer in zip(layers, self.layers, strict=True):
            first = len(loras)
            attention, mlp = layer.self_attn, layer.mlp
            for one, module in (
                (to.query, attention.q_proj),
                (to.memory[0], attention.k_proj),
                (to.memory[1], attention.v_proj),
                (to.output, attention.o_proj),
                (to.widen[0], mlp.gate_proj),
                (to.widen[1], mlp.up_proj),
                (to.narrow, mlp.down_proj),
            ):
                n_values = self._linear(one, module, n_values, held)
                if isinstance(module, LoraLinear):
                    loras.append(module)
                if module is attention.v_proj:
                    to.attends = len(loras) > first
            to.before = _norm(layer.input_layernorm)
            to.after = _norm(layer.post_attention_layernorm)
            if "q_norm" in attention._modules:
                to.of_query, to.of_key = _norm(attention.q_norm), _norm(attention.k_norm)
            to.below, below = below, below or len(loras) > first
        inner = len(_plain(self.layers[0].mlp.gate_proj).weight)
        scale_N = loras[0].scale_N.data_ptr() if loras else None
        sizes = d, inner, q_out // width, k_out // width, width, len(layers)
        last = _norm(self.decoder.norm)
        found = CDecoder(*sizes, layers, last, cos.data_ptr(), sin.data_ptr(), scale_N)
        return Described(found, loras, n_values, held)

    def _linear(self, to: CLinear, module: Any, n_values: int, held: list[Any]) -> int:
        """Fill in a linear layer; the values of a gradient that holds it and `n_values` others."""
        plain = _plain(module)
        up, down = self._panels.of(plain.weight)
        to.n_out, to.up, to.down = len(plain.weight), up.data_ptr(), down.data_ptr()
        to.bias = None if plain.bias is None else plain.bias.data_ptr()
        held += [up, down, plain.bias]
        if not isinstance(module, LoraLinear):
            return n_values
        ranks_N = (ctypes.c_long * len(module.ranks_N))(*module.ranks_N)
        held.append(ranks_N)
        a_NRI, b_NOR = module.A_NRI, module.B_NOR
        to.rank, to.rank_N = a_NRI.shape[1], ctypes.addressof(ranks_N)
        to.A, to.stride_A = a_NRI.data_ptr(), a_NRI.stride(0)
        to.B, to.stride_B = b_NOR.data_ptr(), b_NOR.stride(0)
        to.at_A, to.at_B = module.starts["A_NRI"], module.starts["B_NOR"]
        return max(n_values, int(to.at_A) + a_NRI[0].numel(), int(to.at_B) + b_NOR[0].numel())


class Run:
    """One pass over one batch; `fused` has the same in torch."""

    def __init__(
        self,
        network: Network,
        ids_BT: Tensor,
        x_BTD: Tensor,
        position_BC: Tensor | None,
        first: int = 0,
        end: int | None = None,
    ) -> None:
        """Layers from `first` to before `end` over tokens and what enters them (B, T, D).

        A negative position is not asked for; those are the last of their row. A row of which none
        is asked for is not computed.
        """
        n_rows, n_tokens, _ = x_BTD.shape
        self.network = network
        self.x_BTD = x_BTD.contiguous()
        self.ids_BT = ids_BT[:, :n_tokens].numpy()
        self.described = network.described(n_tokens)
        self.net, self.every, self.n_values, _ = self.described
        self.end = len(network.layers) if end is None else end
        self.loras = self.every
        if first or self.end < len(network.layers):
            running = [m for layer in network.layers[first : self.end] for m in projections(layer)]
            self.loras = [lora for lora in self.every if lora in running]
        """Every adapted module of the layers that run, in model order."""
        self.lengths_B = np.full(n_rows, n_tokens, np.int_)
        self.asked_BC = np.empty((n_rows, n_tokens), np.int_)
        counts = asked = None
        if position_BC is not None:
            self.asked_BC = np.ascontiguousarray(position_BC.numpy(), np.int_)
            self.counts_B = (self.asked_BC >= 0).sum(1)
            self.lengths_B = self.asked_BC.max(1) + 1
            counts, asked = self.counts_B.ctypes.data, self.asked_BC.ctypes.data
        enters, lengths = self.x_BTD.data_ptr(), self.lengths_B.ctypes.data
        n_asked = self.asked_BC.shape[1]
        self.job = CPass(n_tokens, n_asked, first, self.end, enters, lengths, counts, asked)
        self.blocks = self._blocks(n_rows)
        self.learns = any(adapter >= 0 for _, _, adapter in self.blocks)
        self.work: Tensor | None = None

    def _blocks(self, n_rows: int) -> list[tuple[int, int, int]]:
        """First row, number of rows and adapter (-1: none) of every run of rows that share one.

        Raises AdapterError when other rows are bound.
        """
        if not self.loras:
            return [(0, n_rows, -1)]
        rows = self.loras[0].binding.rows
        rows.check(n_rows)
        if rows.single is not None:
            return [(0, n_rows, rows.single)]
        size = n_rows // len(rows.blocks)
        return [(i * size, size, adapter) for i, adapter in enumerate(rows.blocks)]

    def _parts(self, n_threads: int) -> list[tuple[int, int, int, int]]:
        """Blocks cut so that every thread has work and, without gradients, caches hold a part.

        First row, number of rows, adapter and number of tokens with which all of them begin.
        """
        pieces = -(-n_threads // len(self.blocks))
        n_tokens = int(self.job.T)
        cut = []
        for row, n_rows, adapter in self.blocks:
            size = -(-n_rows // pieces)
            if not self.job.keep:
                size = min(size, max(1, PIECE_TOKENS // max(1, n_tokens)))
            for at in range(row, row + n_rows, size):
                n = min(size, row + n_rows - at)
                cut.append((at, n, adapter, self._shared(at, n)))
        return cut

    def _shared(self, row: int, n_rows: int) -> int:
        """How many tokens rows have in common at their beginning; of one row, all.

        Sums then have one order whether or not a row is repeated to fill a batch up.
        """
        if not self.job.counts:
            return 0
        lengths_B = self.lengths_B[row : row + n_rows]
        ids_BT = self.ids_BT[row : row + n_rows][lengths_B > 0]
        if not len(ids_BT):
            return 0
        alike_T = (ids_BT == ids_BT[0]).all(0)
        n_alike = len(alike_T) if alike_T.all() else int(alike_T.argmin())
        return min(n_alike, int(lengths_B[lengths_B > 0].min()))

    def forward(self, *, keep: bool) -> Tensor:
        """What leaves the last layer that runs; with `keep`, so that `backward` can follow."""
        n_rows, _, d = self.x_BTD.shape
        self.job.keep = keep
        out_BCD = floats(n_rows, int(self.job.C), d).zero_()
        self.job.out = out_BCD.data_ptr()
        n_threads = torch.get_num_threads()
        self.parts = self._parts(n_threads)
        places = (CPart * len(self.parts))(*(CPart(*part) for part in self.parts))
        floats_of, net, job = self.network.library.lorewright_floats, self.net, self.job
        sizes = [int(floats_of(ctypes.byref(net), ctypes.byref(job), part)) for part in places]
        if min(sizes) < 0:
            raise MemoryError("no memory for the layout of a pass")
        # Kept values stay where they are until the way back; without, a thread's parts take turns.
        n_values = sum(sizes) if keep else max(sizes) * min(n_threads, len(sizes))
        work = self.network.spare.take(n_values)
        if keep:
            at = work.data_ptr()
            for part, size in zip(places, sizes, strict=True):
                part.work = at
                at += 4 * size
            self.work, self.places, self.n_threads = work, places, n_threads
        self._call(places, n_threads, work, max(sizes), back=False)
        if not keep:
            self.network.spare.give(work)
        return out_BCD

    def backward(self, grad_BCD: Tensor) -> dict[LoraLinear, tuple[Tensor, Tensor]]:
        """Gradients of A_NRI and B_NOR of every adapted module. Once after every `forward`."""
        grads_NP = self.backward_whole(grad_BCD)
        found = {}
        for lora in self.loras:
            given = []
            for name in lora.trained:
                start, shape = lora.starts[name], getattr(lora, name).shape[1:]
                part = grads_NP[:, start : start + shape.numel()]
                given.append(part.view(-1, *shape))
            found[lora] = given[0], given[1]
        return found

    def backward_whole(self, grad_BCD: Tensor) -> Tensor:
        """The same in one buffer (N, P), as `lora.Flat` lays it out."""
        assert self.work is not None, "a pass keeps its values for one way back"
        grad_BCD = grad_BCD.contiguous()
        self.job.grad = grad_BCD.data_ptr()
        grads_ZP = floats(len(self.parts), self.n_values)
        if self.job.first:  # modules below have no part in this
            grads_ZP.zero_()
        for i, part in enumerate(self.places):
            part.grads = grads_ZP.data_ptr() + 4 * i * self.n_values
        self._call(self.places, self.n_threads, self.work, 0, back=True)
        self.network.spare.give(self.work)
        self.work = None
        n_adapters = len(self.loras[0].ranks_N)
        adapters_Z = [adapter for _, _, adapter, _ in self.parts]
        if adapters_Z == list(range(n_adapters)):
            return grads_ZP
        grads_NP = floats(n_adapters, self.n_values).zero_()
        for adapter, part_P in zip(adapters_Z, grads_ZP, strict=True):
            if adapter >= 0:
                grads_NP[adapter] += part_P
        return grads_NP

    def _call(self, places: Any, n_threads: int, work: Tensor, each: int, *, back: bool) -> None:
        run, net, job = self.network.library.lorewright_run, self.net, self.job
        arguments = len(places), n_threads, work.data_ptr(), each, back
        run(ctypes.byref(net), ctypes.byref(job), places, *arguments)


def _place(weight: Tensor | None) -> int:
    return 0 if weight is None else weight.data_ptr()


def _plain(module: Any) -> Any:
    """A projection's frozen layer."""
    return module.base if isinstance(module, LoraLinear) else module


def projections(layer: Any) -> tuple[nn.Module, ...]:
    """A layer's linear layers, as they are now; asked at every step, so that it must be quick."""
    attention, mlp = (layer._modules[name]._modules for name in ("self_attn", "mlp"))
    wide = (attention["q_proj"], attention["k_proj"], attention["v_proj"], attention["o_proj"])
    return (*wide, mlp["gate_proj"], mlp["up_proj"], mlp["down_proj"])


def _norm(norm: Any) -> CNorm:
    return CNorm(norm.weight.data_ptr(), norm.variance_epsilon)
