"""LoRA on a frozen model: a stack of N adapters at once.

    y = W x + scale * B A x         A (R, I), B (O, R) in float32, W frozen in any dtype

N adapters live in one `LoraLinear` as ``A_NRI`` and ``B_NOR``; `Rows` say which of them each row of
a batch uses. Smaller ranks are padded with zeros in A *and* in
B: both gradients vanish there, so the padding stays zero and N adapters trained together equal N
trained alone, provided that gradients are clipped per adapter and optimisers are elementwise.

Shape letters: N adapters, R rank, I in-features, O out-features, B batch row, T token, K row block.

Papers: LoRA, arXiv 2106.09685; the scale with a square root: rsLoRA, arXiv 2312.03732.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters import dora
from lorewright.adapters.config import DORA, LoraConfig
from lorewright.adapters.dropout import Masks
from lorewright.adapters.targets import Adapted, Coverage, resolve_targets, survey
from lorewright.errors import AdapterError, ConfigError

MAGNITUDE = ".lora_magnitude_vector"
"""What a module's magnitudes are called after it, as PEFT has it."""


# The layer


class Rows:
    """Which adapter each row of a batch uses; made once for all layers of a pass.

    Rows are cut into K equal blocks of one adapter each, as long as runs of equal values allow.
    """

    def __init__(self, index_B: Tensor | None = None, n_adapters: int = 1) -> None:
        """The adapter of each row: None = all use adapter 0; -1 in `index_B` = no adapter.

        Raises AdapterError when `index_B` is not a vector of indices below `n_adapters`.
        """
        rows = [0] if index_B is None else torch.atleast_1d(index_B).tolist()
        if not rows or not all(type(row) is int and -1 <= row < n_adapters for row in rows):
            expected = f"one integer per batch row, from -1 (none) to {n_adapters - 1}"
            raise AdapterError(f"rows must be {expected}; got {rows[:8]}.")
        block = math.gcd(*(len(list(run)) for _, run in groupby(rows)))
        self.blocks = rows[::block]
        """The adapter of each block."""
        self.index_B = None if index_B is None else torch.tensor(rows)
        self.single: int | None = rows[0] if len(set(rows)) == 1 else None
        """The adapter that all rows use; None where they differ."""
        self.n_adapters = n_adapters
        self.in_order = self.blocks == list(range(n_adapters))
        self.index_K = torch.tensor(self.blocks).clamp(min=0)
        self.live_K = torch.tensor(self.blocks) >= 0
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def by_block(self) -> Rows:
        """The rows of a batch that has one for each block."""
        return Rows(torch.tensor(self.blocks), self.n_adapters)

    def check(self, n_rows: int) -> None:
        """Raise AdapterError when a batch of so many rows is not the one that is bound."""
        if self.single is None and self.index_B is not None and len(self.index_B) != n_rows:
            raise AdapterError(
                f"{len(self.index_B)} rows are bound; the batch has {n_rows}; bind the rows of "
                "this batch."
            )

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """index_K and live_K on a device, copied there once for all layers and passes."""
        if device not in self._copies:
            self._copies[device] = (self.index_K.to(device), self.live_K.to(device))
        return self._copies[device]


class Binding:
    """What the layers of a stack read in a forward, beside their input: one for all of them."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.dropout: Masks | None = None

    @contextmanager
    def using(self, rows: Rows | None, dropout: Masks | None) -> Iterator[None]:
        """Other rows (None = those that are bound) and dropout for the length of a block."""
        before = self.rows, self.dropout
        self.rows, self.dropout = rows or self.rows, dropout
        try:
            yield
        finally:
            self.rows, self.dropout = before


class Stacked(Adapted):
    """A frozen linear layer with the factors of N adapters, of whatever variant.

    A and B are float32 whatever the base is (in bf16 small steps round to nothing). Rank 0: this
    adapter leaves the layer alone.
    """

    trained: tuple[str, ...] = ("A_NRI", "B_NOR")
    """Names of its parameters."""

    def __init__(
        self,
        base: nn.Linear,
        ranks: list[int],
        scales: list[float],
        binding: Binding,
        name: str = "",
    ) -> None:
        super().__init__()
        n, rank, device = len(ranks), max(ranks), base.weight.device
        self.base = base
        self.name = name
        self.binding = binding
        self.ranks_N = ranks
        self.routed = False  # True inside a mixture of experts, where tokens arrive out of order
        self.starts: dict[str, int] = {}  # of its parameters in `Flat`
        self.A_NRI = nn.Parameter(torch.zeros(n, rank, base.in_features, device=device).float())
        self.B_NOR = nn.Parameter(torch.zeros(n, base.out_features, rank, device=device).float())
        self.scale_N: Tensor
        self.register_buffer("scale_N", torch.tensor(scales, device=device).float(), False)

    def select(self, adapters: Sequence[int]) -> None:
        """Leave only these adapters, in this order."""
        for name in self.trained:
            weight = getattr(self, name)
            setattr(self, name, nn.Parameter(weight.detach()[adapters], weight.requires_grad))
        self.scale_N = self.scale_N[adapters]
        self.ranks_N = [self.ranks_N[i] for i in adapters]

    def _check_rows(self, x_BTI: Tensor) -> Tensor:
        """The adapter of each row. Raises AdapterError when x has other rows than are bound."""
        rows_B = self.binding.rows.index_B
        assert rows_B is not None
        n_rows, n_here, flat = len(rows_B), x_BTI.shape[0], x_BTI.dim() == 2
        if (flat and (self.routed or n_here % n_rows)) or (not flat and n_here != n_rows):
            received = f"{tuple(x_BTI.shape)}{' from a router' if self.routed else ''}"
            remedy = "one adapter for all rows" if self.routed else "the rows of this batch"
            raise AdapterError(
                f"{n_rows} rows are bound; a layer received {received}; bind {remedy}."
            )
        return rows_B


class LoraLinear(Stacked):
    """A frozen linear layer with N adapters: y = W x + scale_n * B_n A_n x, n by batch row.

    The product of A and B is float32; the output has the base's dtype.
    """

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return (B, T, O) in the base's dtype; x may be flattened to (B*T, I)."""
        y_BTO: Tensor = self.base(x_BTI)
        single = self.binding.rows.single
        if single is not None and single < 0:
            return y_BTO
        read_BTI = x_BTI.float()
        if self.binding.dropout is not None:
            read_BTI = self.binding.dropout.hide(read_BTI, self.name, routed=self.routed)
        if single is None:
            return (y_BTO + self._by_block(read_BTI).view_as(y_BTO)).to(y_BTO.dtype)
        if len(self.ranks_N) == 1:  # views: indexing would zero-fill a gradient of full size
            A_RI, B_OR, scale = self.A_NRI.flatten(0, 1), self.B_NOR.flatten(0, 1), self.scale_N
        else:
            A_RI, B_OR, scale = self.A_NRI[single], self.B_NOR[single], self.scale_N[single]
        h_BTR = F.linear(read_BTI, A_RI) * scale
        return (y_BTO + F.linear(h_BTR, B_OR)).to(y_BTO.dtype)

    def _by_block(self, x_BTI: Tensor) -> Tensor:
        """Adapter product where rows differ: one batched product over K blocks of rows."""
        self._check_rows(x_BTI)
        rows = self.binding.rows
        index_K, live_K = rows.on(x_BTI.device)
        scale_K = torch.where(live_K, self.scale_N[index_K], 0.0)
        A_KRI = self.A_NRI if rows.in_order else self.A_NRI[index_K]
        B_KOR = self.B_NOR if rows.in_order else self.B_NOR[index_K]
        x_KMI = x_BTI.reshape(len(index_K), -1, x_BTI.shape[-1])
        return torch.bmm(torch.bmm(x_KMI, A_KRI.mT) * scale_K[:, None, None], B_KOR.mT)


class DoraLinear(Stacked):
    """A frozen linear layer with N adapters, some of which also set the length of W + B A's rows.

    PEFT computes those, adapter by adapter; `dora` has the equation. The others are plain LoRA.
    """

    trained = ("A_NRI", "B_NOR", "M_NO")

    def __init__(
        self,
        base: nn.Linear,
        ranks: list[int],
        scales: list[float],
        binding: Binding,
        name: str = "",
    ) -> None:
        super().__init__(base, ranks, scales, binding, name)
        self.engine = [dora.engine(base)]  # in a list: its weights are not the network's
        self.M_NO = nn.Parameter(dora.row_norms(self.engine[0]).repeat(len(ranks), 1))
        self.lengthens_N = [True] * len(ranks)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return (B, T, O) in the base's dtype; x may be flattened to (B*T, I)."""
        masks, single = self.binding.dropout, self.binding.rows.single
        hidden = masks is not None and not (single is not None and single < 0)
        read_BTI = None
        if masks is not None and hidden:
            read_BTI = masks.hide(x_BTI.float(), self.name, routed=self.routed)
        if single is not None:
            return self._one(single, x_BTI, read_BTI)
        rows_B = self._check_rows(x_BTI)
        x_BMI = x_BTI.reshape(len(rows_B), -1, x_BTI.shape[-1])
        read_BMI = None if read_BTI is None else read_BTI.view_as(x_BMI)
        parts, places = [], []
        for n in rows_B.unique().tolist():
            at = (rows_B == n).nonzero()[:, 0].to(x_BTI.device)
            places.append(at)
            parts.append(self._one(n, x_BMI[at], None if read_BMI is None else read_BMI[at]))
        y_BMO = torch.cat(parts)[torch.cat(places).argsort()]
        return y_BMO.view(*x_BTI.shape[:-1], y_BMO.shape[-1])

    def _one(self, n: int, x: Tensor, read: Tensor | None) -> Tensor:
        """What adapter n makes of its rows; -1 is the base alone."""
        if n < 0 or not self.ranks_N[n]:
            return self.base(x)
        A_RI, B_OR = self.A_NRI[n], self.B_NOR[n] * self.scale_N[n]
        if self.lengthens_N[n]:
            return dora.through(self.engine[0], x, A_RI, B_OR, self.M_NO[n], read=read)
        y: Tensor = self.base(x)
        h = F.linear(x.float() if read is None else read, A_RI)
        return (y + F.linear(h, B_OR)).to(y.dtype)

    def select(self, adapters: Sequence[int]) -> None:
        """Leave only these adapters, in this order."""
        super().select(adapters)
        self.lengthens_N = [self.lengthens_N[i] for i in adapters]


# The stack


class Flat:
    """All A and B of a stack on one device in one buffer, adapter by adapter.

    weight_NP: P values of each of N adapters, of which the layers' parameters are views; is_B_P:
    which of them belong to a B (magnitudes of DoRA count as such, as in PEFT's LoRA+); decayed_P: 0
    where weight decay must not reach, as it would shrink the base; None = everywhere it may. An
    optimiser over it is a handful of vector operations, however many layers there are.
    """

    def __init__(self, n_adapters: int, parts: Sequence[tuple[Stacked, str]]) -> None:
        weights = [getattr(layer, name) for layer, name in parts]
        sizes = [weight.numel() // n_adapters for weight in weights]
        device = weights[0].device
        self.weight_NP = torch.empty(n_adapters, sum(sizes), dtype=torch.float32, device=device)
        self.is_B_P = torch.zeros(sum(sizes), dtype=torch.bool, device=device)
        self.decayed_P: Tensor | None = None
        if any(name == "M_NO" for _, name in parts):
            self.decayed_P = torch.ones(sum(sizes), device=device)
        self.spans: list[tuple[slice, torch.Size]] = []
        self.parameters: list[nn.Parameter] = []
        at = 0
        for (layer, name), weight, size in zip(parts, weights, sizes, strict=True):
            span = slice(at, at + size)
            view = self.weight_NP[:, span].unflatten(1, weight.shape[1:])
            view.copy_(weight.detach())
            setattr(layer, name, nn.Parameter(view, weight.requires_grad))
            self.parameters.append(getattr(layer, name))
            self.spans.append((span, weight.shape[1:]))
            layer.starts[name] = at
            self.is_B_P[span] = name != "A_NRI"
            if self.decayed_P is not None and name == "M_NO":
                self.decayed_P[span] = 0
            at += size


class Stack(AbstractContextManager["Stack"]):
    """N adapters on one model, from `attach` (which makes it) to `detach` or the end of `with`."""

    def __init__(
        self, model: nn.Module, configs: Sequence[LoraConfig], coverage: Sequence[Coverage]
    ) -> None:
        self.model = model
        self.configs = tuple(configs)
        self.coverage = tuple(coverage)
        self.binding = Binding()
        self.modules: dict[str, Stacked] = {}
        self.flats: tuple[Flat, ...] = ()
        self._thawed = [weight for weight in model.parameters() if weight.requires_grad]
        model.requires_grad_(False)
        kind = DoraLinear if any(config.variant == DORA for config in configs) else LoraLinear
        covered = [frozenset(each.names) for each in coverage]
        for site in survey(model)[0]:
            ranks = [config.rank * (site.name in covered[n]) for n, config in enumerate(configs)]
            if any(ranks):
                base = model.get_submodule(site.name)
                assert isinstance(base, nn.Linear)
                layer = kind(base, ranks, [c.scale for c in configs], self.binding, site.name)
                if isinstance(layer, DoraLinear):
                    layer.lengthens_N = [config.variant == DORA for config in configs]
                layer.routed = "experts" in site.projection.split(".")
                self.modules[site.name] = layer.train(base.training)
                model.set_submodule(site.name, layer)
        self._lay_flat()
        for n, config in enumerate(configs):
            self.reset(n, config.seed)

    def _lay_flat(self) -> None:
        """Move all A and B of a device into one buffer, of which they become views."""
        by_device: dict[torch.device, list[tuple[Stacked, str]]] = {}
        for layer in self.modules.values():
            for name in layer.trained:
                by_device.setdefault(layer.A_NRI.device, []).append((layer, name))
        self.flats = tuple(Flat(len(self), parts) for parts in by_device.values())

    def __len__(self) -> int:
        return len(self.configs)

    def __exit__(self, *error: object) -> None:
        self.detach()

    def bind(self, rows_B: Tensor | None) -> None:
        """Bind batch rows to adapters until the next call; hold still until after backward.

        None = every row uses adapter 0; otherwise one index per row, -1 = no adapter.
        """
        self.binding.rows = Rows(rows_B, len(self))

    def parameters(self) -> list[nn.Parameter]:
        """All A_NRI and B_NOR (and M_NO), in model order: what an optimiser is given."""
        layers = self.modules.values()
        return [getattr(layer, name) for layer in layers for name in layer.trained]

    def tensors(self, n: int) -> dict[str, Tensor]:
        """Copy adapter n to float32 on the CPU, trimmed to its rank.

        Keys "<module>.lora_A.weight" (R, I) and "<module>.lora_B.weight" (O, R); of DoRA also
        "<module>.lora_magnitude_vector" (O).
        """
        views = self._views(n).items()
        return {key: view.to("cpu", copy=True).contiguous() for key, view in views}

    def load(self, n: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors, keyed as `tensors` returns them, into adapter n.

        Raises AdapterError, before copying, unless keys and shapes are exactly adapter n's.
        """
        views = self._views(n)
        check_keys(f"adapter {n} of the stack", views, "the tensors", tensors)
        for key, view in views.items():
            if tensors[key].shape != view.shape:
                shape, expected = tuple(tensors[key].shape), tuple(view.shape)
                raise AdapterError(f"{key!r} is {shape}; adapter {n} of the stack has {expected}.")
        for key, view in views.items():
            view.copy_(tensors[key].detach())

    def reset(self, n: int, seed: int) -> None:
        """Draw A anew and zero B: adapter n is untrained (zeroing A too would end all learning).

        A ~ U(-1/sqrt(I), 1/sqrt(I)), which is Kaiming uniform with a = sqrt(5). Each module has a
        generator of its own, seeded by a checksum of (seed, name): the same for every N and device.
        """
        for key, view in self._views(n).items():
            if key.endswith(".lora_B.weight"):
                view.zero_()
                continue
            if key.endswith(MAGNITUDE):
                layer = self.modules[key.removesuffix(MAGNITUDE)]
                assert isinstance(layer, DoraLinear)
                view.copy_(dora.row_norms(layer.engine[0]))
                continue
            # torch's CPU generator keeps 32 bits of its seed, so seed and name must be mixed.
            mixed = zlib.crc32(key.removesuffix(".lora_A.weight").encode(), seed)
            generator = torch.Generator().manual_seed(mixed)
            bound = 1 / math.sqrt(view.shape[1])
            view.copy_(torch.empty(view.shape).uniform_(-bound, bound, generator=generator))

    def idle(self, n: int) -> tuple[str, ...]:
        """Name the modules in which adapter n has not moved at all: their B is still zero."""
        adapted = (name for name, layer in self.modules.items() if layer.ranks_N[n])
        return tuple(name for name in adapted if not self.modules[name].B_NOR[n].any())

    def drop(self, n: int) -> None:
        """Take adapter n out; later ones move down by one, and rows bound to n lose their adapter.

        Parameters are new objects afterwards: make a new optimiser. The last one cannot be dropped.
        """
        if len(self) == 1 or not 0 <= n < len(self):
            raise AdapterError(f"cannot drop adapter {n} of {len(self)}; detach ends the last one.")
        keep = [i for i in range(len(self)) if i != n]
        for layer in self.modules.values():
            layer.select(keep)
        self.configs = tuple(self.configs[i] for i in keep)
        self.coverage = tuple(self.coverage[i] for i in keep)
        self._lay_flat()
        if (rows_B := self.binding.rows.index_B) is not None:
            moved_B = torch.where(rows_B > n, rows_B - 1, rows_B)
            self.bind(torch.where(rows_B == n, -1, moved_B))

    def detach(self) -> None:
        """Put back the original modules and their requires_grad; twice is harmless."""
        for name, layer in self.modules.items():
            self.model.set_submodule(name, layer.base)
        for weight in self._thawed:
            weight.requires_grad_(True)
        self.modules, self._thawed = {}, []

    def _views(self, n: int) -> dict[str, Tensor]:
        """Adapter n's part of the parameters, without padding and without absent modules."""
        if not 0 <= n < len(self):
            raise AdapterError(f"there is no adapter {n}; the stack holds {len(self)}, from 0.")
        views: dict[str, Tensor] = {}
        for name, layer in self.modules.items():
            if rank := layer.ranks_N[n]:
                views[f"{name}.lora_A.weight"] = layer.A_NRI.detach()[n, :rank]
                views[f"{name}.lora_B.weight"] = layer.B_NOR.detach()[n, :, :rank]
                if isinstance(layer, DoraLinear) and layer.lengthens_N[n]:
                    views[name + MAGNITUDE] = layer.M_NO.detach()[n]
        return views


def attach(model: nn.Module, configs: Sequence[LoraConfig]) -> Stack:
    """Put one new adapter per config on the model's text decoder and freeze everything else.

    Every config is resolved before the model is touched. Raises AdapterError if one is attached.
    """
    if not configs:
        raise ConfigError("attach needs at least one LoraConfig; got none.")
    if any(isinstance(module, Adapted) for module in model.modules()):
        raise AdapterError("this model has a stack attached already; detach that one first.")
    return Stack(model, configs, [resolve_targets(model, c.targets, c.layers) for c in configs])


def check_keys(
    expected_in: str, expected: Mapping[str, object], actual_in: str, actual: Mapping[str, object]
) -> None:
    """Raise AdapterError, with counts and the first few keys, unless both have the same keys."""
    missing = [key for key in expected if key not in actual]
    extra = [key for key in actual if key not in expected]
    if missing or extra:
        raise AdapterError(
            f"{actual_in} do not fit {expected_in}: {len(missing)} of {len(expected)} missing"
            f"{_few(missing)}, {len(extra)} of {len(actual)} not expected{_few(extra)}."
        )


def _few(keys: Sequence[str]) -> str:
    return f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""
