"""Adapters side by side on one base, for answering: slots that are filled while it runs.

    y_O = W x + B_OR A_RI x,  A and B those of the row's slot

All adapters of a batch lie in one A and one B per layer. A pass lays its rows out by slot and takes
one batched product with the slots in use, so that a row is computed with its own adapter and no
other, and nothing of another row, not even NaN, reaches it. Rows of the base alone are left out.

Adapters are known by content id, rows by number. The base is bit-identical after `close`.

Shape letters: S slots in use, P places (S x most rows of a slot), R rank, I in-features,
O out-features, B batch row, L rows with an adapter, T token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lorewright.adapters.adapter import HALVES, Adapter, needs_plain
from lorewright.adapters.proof import check_effect, validate
from lorewright.adapters.targets import Adapted, survey
from lorewright.errors import AdapterError
from lorewright.models.model import Model

NO_SLOT = -1
"""The slot of a row that is answered by the base alone."""


class Layout(NamedTuple):
    """The rows of a pass in the order of their slots, and back."""

    slots: slice | Tensor
    """The slots that are computed: a range, or these."""
    row_P: Tensor
    """The row at each place, slot by slot; any row where a slot has fewer rows than another."""
    place_L: Tensor
    """The place of each row that has an adapter."""
    row_L: Tensor | None
    """Those rows; None = all."""


class Binding:
    """Which slots the rows of the next pass use; one object for all layers."""

    def __init__(self) -> None:
        self.slots_B: list[int] = []
        self.active = False
        """Whether a row has an adapter."""
        self._layouts: dict[torch.device, Layout] = {}
        self._input: tuple[Tensor, Tensor] | None = None

    def bind(self, slots_B: Sequence[int]) -> None:
        """Set the slot of each row, NO_SLOT for none."""
        self._input = None
        if list(slots_B) != self.slots_B:
            self.slots_B, self._layouts = list(slots_B), {}
            self.active = any(slot != NO_SLOT for slot in slots_B)

    def layout(self, device: torch.device) -> Layout:
        """The layout of the rows."""
        if device not in self._layouts:
            rows: dict[int, list[int]] = {}
            for row, slot in enumerate(self.slots_B):
                if slot != NO_SLOT:
                    rows.setdefault(slot, []).append(row)
            first, last = min(rows), max(rows)
            as_range = last - first < 2 * len(rows)  # a few unused slots cost less than copies
            slots = list(range(first, last + 1)) if as_range else sorted(rows)
            n_each = max(map(len, rows.values()))
            places: list[int] = []
            for slot in slots:
                own = rows.get(slot, [])
                places += own + [0] * (n_each - len(own))
            adapted = sorted(row for own in rows.values() for row in own)
            at = {
                row: slots.index(slot) * n_each + n
                for slot, own in rows.items()
                for n, row in enumerate(own)
            }
            self._layouts[device] = Layout(
                slice(first, last + 1) if as_range else torch.tensor(slots, device=device),
                torch.tensor(places, device=device),
                torch.tensor([at[row] for row in adapted], device=device),
                None if len(adapted) == len(self.slots_B) else torch.tensor(adapted, device=device),
            )
        return self._layouts[device]

    def laid_out(self, x_BTI: Tensor, layout: Layout) -> Tensor:
        """The rows of x by place, (P, T, I) in float32; layers that share an input do it once."""
        if self._input is None or self._input[0] is not x_BTI:
            # some decoders flatten to (B T, I) before their feed-forward layers
            rows_BTI = x_BTI.float().reshape(len(self.slots_B), -1, x_BTI.shape[-1])
            self._input = (x_BTI, rows_BTI.index_select(0, layout.row_P))
        return self._input[1]


class SlotLinear(Adapted):
    """A frozen linear layer and what the adapters in its slots add to it, by row."""

    def __init__(self, base: nn.Linear, binding: Binding) -> None:
        super().__init__()
        self.base = base
        self.binding = binding
        self.A_SIR: Tensor | None = None
        self.B_SRO: Tensor | None = None
        self._selected: tuple[Layout, Tensor, Tensor] | None = None
        """A and B of the slots of the last layout."""

    def reserve(self, n_slots: int, rank: int) -> None:
        """Make space for n slots of a rank; slots keep their content, new ones are zero."""
        have, had = (0, 0) if self.A_SIR is None else (len(self.A_SIR), self.A_SIR.shape[2])
        if n_slots <= have and rank <= had:
            return
        n_slots, rank = max(n_slots, have), max(rank, had)
        device, base = self.base.weight.device, self.base
        A_SIR = torch.zeros(n_slots, base.in_features, rank, device=device)
        B_SRO = torch.zeros(n_slots, rank, base.out_features, device=device)
        if self.A_SIR is not None and self.B_SRO is not None:
            A_SIR[:have, :, :had], B_SRO[:have, :had] = self.A_SIR, self.B_SRO
        self.A_SIR, self.B_SRO, self._selected = A_SIR, B_SRO, None

    def fill(self, slot: int, A_RI: Tensor, B_OR: Tensor, scale: float) -> None:
        """Put an adapter's factors into a slot, zeros above their rank."""
        self.empty(slot)
        assert self.A_SIR is not None and self.B_SRO is not None
        self.A_SIR[slot, :, : len(A_RI)] = A_RI.T * scale
        self.B_SRO[slot, : len(A_RI)] = B_OR.T

    def empty(self, slot: int) -> None:
        """Zero a slot."""
        self._selected = None
        if self.A_SIR is not None and self.B_SRO is not None:
            self.A_SIR[slot], self.B_SRO[slot] = 0, 0

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return (B, T, O) in the base's dtype; x may be flattened to (B T, I)."""
        y: Tensor = self.base(x_BTI)
        if self.A_SIR is None or self.B_SRO is None or not self.binding.active:
            return y
        layout = self.binding.layout(x_BTI.device)
        if self._selected is None or self._selected[0] is not layout:
            self._selected = (layout, self.A_SIR[layout.slots], self.B_SRO[layout.slots])
        _, A_SIR, B_SRO = self._selected
        x_PTI = self.binding.laid_out(x_BTI, layout)
        x_SJI = x_PTI.reshape(len(A_SIR), -1, x_PTI.shape[-1])  # J = rows of a slot x T
        add_SJO = torch.bmm(torch.bmm(x_SJI, A_SIR), B_SRO)
        add_LTO = add_SJO.reshape(len(x_PTI), -1, y.shape[-1]).index_select(0, layout.place_L)
        if layout.row_L is not None:
            y_BTO = y.view(len(self.binding.slots_B), -1, y.shape[-1])
            add_LTO = y_BTO.index_select(0, layout.row_L) + add_LTO
            return y_BTO.index_copy(0, layout.row_L, add_LTO.to(y.dtype)).view_as(y)
        if y.dtype == torch.float32:  # in place, for nothing else refers to y
            return y.add_(add_LTO.view_as(y))
        return (y + add_LTO.view_as(y)).to(y.dtype)


class AdapterCache:
    """The adapters that lie on a base now, each in a slot, by content id."""

    def __init__(self, model: Model, n_slots: int) -> None:
        """Replace every layer that an adapter may change; `close` puts the layers back."""
        self.model = model
        self.n_slots = n_slots
        self.binding = Binding()
        self.layers: dict[str, SlotLinear] = {}
        self.slots: dict[str, int] = {}
        """Content id to slot, least recently used first."""
        self._n_users = Counter[str]()
        sites = survey(model.network)[0]
        self.batches = not any("experts" in site.projection.split(".") for site in sites)
        """False where experts receive tokens out of order, so that rows cannot be separated."""
        for site in sites:
            base = model.network.get_submodule(site.name)
            if not isinstance(base, nn.Linear):
                raise AdapterError(f"{site.name!r} carries adapters already; detach them first.")
            self.layers[site.name] = SlotLinear(base, self.binding).train(base.training)
        for name, layer in self.layers.items():
            model.network.set_submodule(name, layer)

    def acquire(self, adapter_id: str, adapter: Adapter) -> int:
        """Return the slot of an adapter, filled if it has none yet; in use until `release`.

        Raises AdapterError when all slots are in use.
        """
        slot = self.slots.pop(adapter_id, None)
        if slot is None:
            slot = self._free_slot()
            self._fill(slot, adapter)
        self.slots[adapter_id] = slot
        self._n_users[adapter_id] += 1
        return slot

    def release(self, adapter_id: str) -> None:
        """End one use of an adapter; it stays in its slot until another one needs it."""
        self._n_users -= Counter([adapter_id])  # leaves no zeros

    def retain(self, adapter_ids: Collection[str]) -> None:
        """Empty the slots of all other adapters that are not in use."""
        for adapter_id in [
            i for i in self.slots if i not in adapter_ids and i not in self._n_users
        ]:
            slot = self.slots.pop(adapter_id)
            for layer in self.layers.values():
                layer.empty(slot)

    def close(self) -> None:
        """Put the original layers back; twice is harmless."""
        for name, layer in self.layers.items():
            self.model.network.set_submodule(name, layer.base)
        self.layers, self.slots = {}, {}
        self._n_users.clear()

    def _free_slot(self) -> int:
        free = set(range(self.n_slots)) - set(self.slots.values())
        if free:
            return min(free)
        idle = [adapter_id for adapter_id in self.slots if adapter_id not in self._n_users]
        if not idle:
            raise AdapterError(f"all {self.n_slots} slots are in use; wait for a row to end.")
        return self.slots.pop(idle[0])

    def _fill(self, slot: int, adapter: Adapter) -> None:
        names, config = set(adapter.modules), adapter.config
        # a layer's first adapter may be in a low slot, beside rows of higher ones; twice as many
        # as are needed now: few copies, little waste
        n_needed = 1 + max([slot, *self.slots.values()])
        n_slots = min(self.n_slots, 1 << (n_needed - 1).bit_length())
        for name, layer in self.layers.items():
            if name in names:
                layer.reserve(n_slots, config.rank)
                device = layer.weight.device
                A_RI, B_OR = (adapter.tensors[name + half].to(device) for half in HALVES)
                layer.fill(slot, A_RI, B_OR, config.scale)
            elif layer.A_SIR is not None:
                layer.reserve(n_slots, config.rank)
                layer.empty(slot)


def check(adapter: Adapter, model: Model) -> None:
    """Refuse an adapter that does not fit the base, both ways, or that changes nothing.

    Raises WrongBase or AdapterError as `proof.validate` does, NoEffect where every weight change is
    zero: a memory that loads and does nothing must not be served.
    """
    needs_plain([adapter], "serving many memories in one batch")
    validate(adapter, model.network, model.digest)
    check_effect(adapter)
