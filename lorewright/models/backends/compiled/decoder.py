"""A decoder's layers as decoder.c reads them, and one pass over a batch.

Shape letters: B row, T token, C queried position, D width, N adapters of the stack, P values of one
adapter, Z parts of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lorewright.adapters.lora import LoraLinear, Rows
from lorewright.models.backends.compiled.library import Library
from lorewright.models.backends.compiled.memory import Packed, Spare, floats, version
from lorewright.models.backends.llama import LlamaDecoder, frozen_linear, projections

PIECE_TOKENS = 160
"""Of a part that needs no gradient: what a core's cache holds."""


class Described(NamedTuple):
    """A network as decoder.c has it."""

    net: Any
    loras: list[LoraLinear]
    """Its adapted modules, in model order."""
    n_values: int
    """P of one adapter's gradients."""
    alive: list[Any]
    """What `net` points to."""


class Network:
    """A decoder's layers as decoder.c has them, described again when they change."""

    def __init__(self, library: Library, decoder: LlamaDecoder) -> None:
        self.library, self.decoder, self.layers = library, decoder, decoder.layers
        self._packed = Packed(library)
        self._described: tuple[list[Any], Described] | None = None
        # What a layer's parts are changes when adapters come and go; their dictionaries stay.
        self._inside = [decoder.body._modules] + [
            m._modules for x in self.layers for m in (x, x.self_attn, x.mlp)
        ]
        self.spare = Spare()

    def described(self, n_tokens: int) -> Described:
        """The network as it is now, for texts of so many tokens."""
        cos, sin = self.decoder.rotary(n_tokens)
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
                    now.append((*version(weight), _place(module._parameters.get("bias"))))
        last = self._described
        if last is None or last[0] != now:
            self._described = last = now, self._describe(cos, sin)
        return last[1]

    def _describe(self, cos: Tensor, sin: Tensor) -> Described:
        floats_of, ffi = self.library.floats, self.library.ffi
        attention = self.layers[0].self_attn
        width = int(attention.head_dim)
        q_out, d = frozen_linear(attention.q_proj).weight.shape
        k_out = len(frozen_linear(attention.k_proj).weight)
        layers, n_values, below = ffi.new("Layer[]", len(self.layers)), 0, False
        loras: list[LoraLinear] = []
        alive: list[Any] = [cos, sin, layers]
        for to, layer in zip(layers, self.layers, strict=True):
            first = len(loras)
            places = (to.query, *to.memory, to.output, *to.widen, to.narrow)
            for place, module in zip(places, projections(layer), strict=True):
                n_values = self._linear(place, module, n_values, alive)
                if isinstance(module, LoraLinear):
                    loras.append(module)
                if module is layer.self_attn.v_proj:
                    to.attends = len(loras) > first
            self._norm(to.before, layer.input_layernorm)
            self._norm(to.after, layer.post_attention_layernorm)
            if "q_norm" in layer.self_attn._modules:
                self._norm(to.of_query, layer.self_attn.q_norm)
                self._norm(to.of_key, layer.self_attn.k_norm)
            to.below, below = below, below or len(loras) > first
        net = ffi.new("Decoder *")
        net.D, net.F = d, len(frozen_linear(self.layers[0].mlp.gate_proj).weight)
        net.H, net.G, net.E, net.n_layers = q_out // width, k_out // width, width, len(layers)
        net.layers, net.cos, net.sin = layers, floats_of(cos), floats_of(sin)
        self._norm(net.last, self.decoder.body.norm)
        if loras:
            net.scale_N = floats_of(loras[0].scale_N)
        return Described(net, loras, n_values, alive)

    def _norm(self, to: Any, norm: Any) -> None:
        to.weight, to.eps = self.library.floats(norm.weight), norm.variance_epsilon

    def _linear(self, to: Any, module: Any, n_values: int, alive: list[Any]) -> int:
        """Fill in a linear layer; the values of a gradient that holds it and `n_values` others."""
        floats_of, plain = self.library.floats, frozen_linear(module)
        up, down = self._packed.of(plain.weight)
        to.n_out, to.up, to.down = len(plain.weight), floats_of(up), floats_of(down)
        if plain.bias is not None:
            to.bias = floats_of(plain.bias)
        alive += [up, down, plain.bias]
        if not isinstance(module, LoraLinear):
            return n_values
        ranks_N = self.library.ffi.new("long[]", module.ranks_N)
        alive.append(ranks_N)
        a_NRI, b_NOR = module.A_NRI, module.B_NOR
        to.rank, to.rank_N = a_NRI.shape[1], ranks_N
        to.A, to.stride_A = floats_of(a_NRI), a_NRI.stride(0)
        to.B, to.stride_B = floats_of(b_NOR), b_NOR.stride(0)
        to.at_A, to.at_B = module.starts["A_NRI"], module.starts["B_NOR"]
        return max(n_values, int(to.at_A) + a_NRI[0].numel(), int(to.at_B) + b_NOR[0].numel())


class CRun:
    """One pass over one batch; `llama.Run`."""

    def __init__(
        self,
        network: Network,
        ids_BT: Tensor,
        x_BTD: Tensor,
        position_BC: Tensor | None,
        rows: Rows | None,
        first: int = 0,
        end: int | None = None,
    ) -> None:
        """Layers from `first` to before `end` over tokens and what enters them (B, T, D).

        A negative position, the last of its row, is not queried. A row without queries is not
        computed. Raises AdapterError when `rows` are of another batch.
        """
        n_rows, n_tokens, _ = x_BTD.shape
        self.network = network
        self.x_BTD = x_BTD.contiguous()
        self.ids_BT = ids_BT[:, :n_tokens].numpy()
        self.described = network.described(n_tokens)
        self.end = len(network.layers) if end is None else end
        self.loras = self.described.loras
        if first or self.end < len(network.layers):
            running = [m for layer in network.layers[first : self.end] for m in projections(layer)]
            self.loras = [lora for lora in self.loras if lora in running]
        library = network.library
        self.lengths_B = np.full(n_rows, n_tokens, np.int_)
        self.job = library.ffi.new("Pass *")
        self.job.T, self.job.C, self.job.first, self.job.end = n_tokens, n_tokens, first, self.end
        self.job.x = library.floats(self.x_BTD)
        if position_BC is not None:
            self.position_BC = np.ascontiguousarray(position_BC.numpy(), np.int_)
            self.counts_B = (self.position_BC >= 0).sum(1)
            self.lengths_B = self.position_BC.max(1) + 1
            self.job.C = self.position_BC.shape[1]
            self.job.counts = library.ffi.from_buffer("long[]", self.counts_B)
            self.job.positions = library.ffi.from_buffer("long[]", self.position_BC)
        self.job.lengths = library.ffi.from_buffer("long[]", self.lengths_B)
        self.blocks = self._blocks(n_rows, rows)
        self.learns = any(adapter >= 0 for _, _, adapter in self.blocks)
        self.work: Tensor | None = None

    def _blocks(self, n_rows: int, rows: Rows | None) -> list[tuple[int, int, int]]:
        """First row, number of rows and adapter (-1: none) of every run of rows that share one."""
        if not self.loras:
            return [(0, n_rows, -1)]
        rows = rows or self.loras[0].binding.rows
        rows.check(n_rows)
        if rows.single is not None:
            return [(0, n_rows, rows.single)]
        size = n_rows // len(rows.blocks)
        return [(i * size, size, adapter) for i, adapter in enumerate(rows.blocks)]

    def _parts(self, n_threads: int, *, save: bool) -> list[tuple[int, int, int, int]]:
        """Blocks cut so that every thread has work and, without gradients, caches hold a part.

        First row, number of rows, adapter and number of tokens with which all of them begin.
        """
        pieces = -(-n_threads // len(self.blocks))
        n_tokens = self.x_BTD.shape[1]
        cut = []
        for row, n_rows, adapter in self.blocks:
            size = -(-n_rows // pieces)
            if not save:
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

    def forward(self, *, save: bool) -> Tensor:
        """What leaves the last layer that runs; with `save`, so that `backward` can follow."""
        library, n_threads = self.network.library, torch.get_num_threads()
        n_rows, _, d = self.x_BTD.shape
        out_BCD = floats(n_rows, int(self.job.C), d).zero_()
        self.job.save, self.job.out = save, library.floats(out_BCD)
        cut = self._parts(n_threads, save=save)
        self.adapters_Z = [adapter for _, _, adapter, _ in cut]
        parts = self.parts = library.ffi.new("Part[]", cut)
        net, count = self.described.net, library.lib.lorewright_floats
        sizes = [count(net, self.job, parts + i) for i in range(len(cut))]
        if min(sizes) < 0:
            raise MemoryError("no memory for the layout of a pass")
        # Saved values stay where they are until the backward pass; else a thread's parts share.
        n_values = sum(sizes) if save else max(sizes) * min(n_threads, len(sizes))
        work = self.network.spare.take(n_values)
        if save:
            at = library.floats(work)
            for part, size in zip(parts, sizes, strict=True):
                part.work = at
                at += size
            self.work, self.n_threads = work, n_threads
        self._call(n_threads, work, max(sizes), back=False)
        if not save:
            self.network.spare.give(work)
        return out_BCD

    def backward(self, grad_BCD: Tensor) -> dict[LoraLinear, tuple[Tensor, Tensor]]:
        """Gradients of A_NRI and B_NOR of every adapted module. Once after every `forward`."""
        grads_NP = self.backward_whole(grad_BCD)

        def part(lora: LoraLinear, name: str) -> Tensor:
            start, shape = lora.starts[name], getattr(lora, name).shape[1:]
            return grads_NP[:, start : start + shape.numel()].view(-1, *shape)

        return {lora: (part(lora, "A_NRI"), part(lora, "B_NOR")) for lora in self.loras}

    def backward_whole(self, grad_BCD: Tensor) -> Tensor:
        """The same in one buffer (N, P), as `lora.Flat` lays it out."""
        assert self.work is not None, "a pass saves its values for one backward pass"
        library, n_values = self.network.library, self.described.n_values
        grad_BCD = grad_BCD.contiguous()
        self.job.grad = library.floats(grad_BCD)
        grads_ZP = floats(len(self.parts), n_values)
        if self.job.first:  # modules below have no part in this
            grads_ZP.zero_()
        start = library.floats(grads_ZP)
        for i, part in enumerate(self.parts):
            part.grads = start + i * n_values
        self._call(self.n_threads, self.work, 0, back=True)
        self.network.spare.give(self.work)
        self.work = None
        n_adapters = len(self.loras[0].ranks_N)
        if self.adapters_Z == list(range(n_adapters)):
            return grads_ZP
        grads_NP = floats(n_adapters, n_values).zero_()
        for adapter, part_P in zip(self.adapters_Z, grads_ZP, strict=True):
            if adapter >= 0:
                grads_NP[adapter] += part_P
        return grads_NP

    def _call(self, n_threads: int, work: Tensor, each: int, *, back: bool) -> None:
        library, net = self.network.library, self.described.net
        arguments = len(self.parts), n_threads, library.floats(work), each, back
        library.lib.lorewright_run(net, self.job, self.parts, *arguments)


def _place(weight: Tensor | None) -> int:
    return 0 if weight is None else weight.data_ptr()
