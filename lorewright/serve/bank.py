"""Adapters side by side on one base, for answering: slots that are filled while it runs.

    y_O = W x + B_OR A_RI x,  A and B those of the row's slot

All adapters of a batch lie in one A and one B per layer, and rows need no order. Rows that all use
other slots are laid out by slot: what moves are their vectors, where giving each row its A and B
would copy the adapters. Where rows share slots, a step of one token a row takes one product with
all slots, and a mask that is zero in every slot but the row's own; prompts, with many tokens a row,
take copies, as `lora` does in training.

This room knows adapters by their content id and rows by number. It knows nothing of requests,
tokens or files. The base is bit-identical after `close`.

Shape letters: S slots, M slots x rank, R rank, I in-features, O out-features, B batch row, T token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.adapter import HALVES, Adapter, delta_norms, needs_plain, validate
from lorewright.adapters.targets import Adapted, survey
from lorewright.errors import AdapterError, NoEffect
from lorewright.models.model import Model

NO_SLOT = -1
"""The slot of a row that is answered by the base alone."""


class Lanes(NamedTuple):
    """Rows in the order of their slots, and back."""

    slots: slice | Tensor
    """The slots that are computed: all between the first and the last in use, or these."""
    row_S: Tensor
    """The row that each is computed for; any row where nobody uses the slot."""
    back_B: Tensor
    """Where each row's result lies."""
    live_B11: Tensor | None
    """0 for rows of the base alone; None where there are none."""


class Binding:
    """Which slots the rows of the next pass use; one object for all layers of a bank."""

    def __init__(self) -> None:
        self.span: tuple[int, int] | None = None
        """First and last slot in use; None = the base alone."""
        self.shared = False
        """Whether all rows use the same slot."""
        self.apart = False
        """Whether no two rows use the same slot."""
        self.slots_B: list[int] = []
        self._made: dict[tuple[str, int, torch.device], tuple[Tensor, ...]] = {}
        self._lanes: dict[torch.device, Lanes] = {}
        self._laid: tuple[Tensor, Tensor] | None = None

    def bind(self, slots_B: Sequence[int]) -> None:
        """Set the slot of each row, NO_SLOT for none."""
        self._laid = None
        if list(slots_B) == self.slots_B:
            return
        used = set(slots_B)
        self.shared = len(used) == 1
        used.discard(NO_SLOT)
        self.apart = len(used) == len(slots_B) - list(slots_B).count(NO_SLOT)
        self.span = (min(used), max(used)) if used else None
        self.slots_B = list(slots_B)
        self._made, self._lanes = {}, {}

    def mask(self, rank: int, device: torch.device) -> Tensor:
        """1 where a row may use a column of h, as (B, 1, M) over the span of slots in use."""
        key = ("mask", rank, device)
        if key not in self._made:
            assert self.span is not None
            slot_M = torch.arange(self.span[0], self.span[1] + 1).repeat_interleave(rank)
            own_BM = torch.tensor(self.slots_B)[:, None] == slot_M
            self._made[key] = (own_BM[:, None].float().to(device),)
        return self._made[key][0]

    def lanes(self, device: torch.device) -> Lanes:
        """Where no two rows use the same slot: what is computed for which row, and put where."""
        if device not in self._lanes:
            assert self.span is not None
            row_of = {slot: row for row, slot in enumerate(self.slots_B) if slot != NO_SLOT}
            first, last = self.span
            whole = last - first < 2 * len(row_of)  # a few slots for nobody cost less than copies
            slots = list(range(first, last + 1)) if whole else sorted(row_of)
            place = {slot: n for n, slot in enumerate(slots)}
            rows = [row_of.get(slot, 0) for slot in slots]
            back = [place.get(slot, 0) for slot in self.slots_B]
            live = [[[float(slot != NO_SLOT)]] for slot in self.slots_B]
            self._lanes[device] = Lanes(
                slice(first, last + 1) if whole else torch.tensor(slots, device=device),
                torch.tensor(rows, device=device),
                torch.tensor(back, device=device),
                None if NO_SLOT not in self.slots_B else torch.tensor(live, device=device),
            )
        return self._lanes[device]

    def laid(self, x_BTI: Tensor, lanes: Lanes) -> Tensor:
        """The rows of x by slot (S, T, I); modules that share an input lay it out once."""
        if self._laid is None or self._laid[0] is not x_BTI:
            rows_BTI = x_BTI.float().reshape(len(self.slots_B), -1, x_BTI.shape[-1])
            self._laid = (x_BTI, rows_BTI.index_select(0, lanes.row_S))
        return self._laid[1]

    def index(self, device: torch.device) -> tuple[Tensor, ...]:
        """The slot of each row, 0 where it has none, and 1 or 0 for whether it has one."""
        key = ("index", 0, device)
        if key not in self._made:
            slot_B = torch.tensor(self.slots_B, device=device)
            self._made[key] = (slot_B.clamp(min=0), (slot_B != NO_SLOT).float()[:, None, None])
        return self._made[key]


class BankLinear(Adapted):
    """A frozen linear layer and what the bank's adapters add to it, by row."""

    def __init__(self, base: nn.Linear, binding: Binding) -> None:
        super().__init__()
        self.base = base
        self.binding = binding
        self.rank = 0
        self.A_MI: Tensor | None = None
        self.B_MO: Tensor | None = None
        self._cut: tuple[Lanes, Tensor, Tensor] | None = None
        """A and B of the lanes that were asked last."""

    def reserve(self, n_slots: int, rank: int) -> None:
        """Make room for n slots of a rank; what the slots hold stays, empty ones are zero."""
        have = 0 if self.A_MI is None else len(self.A_MI) // self.rank
        if n_slots <= have and rank <= self.rank:
            return
        n_slots, rank = max(n_slots, have), max(rank, self.rank)
        device = self.base.weight.device
        for name, width in (("A_MI", self.base.in_features), ("B_MO", self.base.out_features)):
            new = torch.zeros(n_slots, rank, width, device=device)
            old: Tensor | None = getattr(self, name)
            if old is not None:
                new[:have, : self.rank] = old.unflatten(0, (have, self.rank))
            setattr(self, name, new.flatten(0, 1))
        self.rank, self._cut = rank, None

    def fill(self, slot: int, A_RI: Tensor, B_OR: Tensor, scale: float) -> None:
        """Put an adapter's factors into a slot, zeros above their rank."""
        assert self.A_MI is not None and self.B_MO is not None
        start, rank = slot * self.rank, len(A_RI)
        self.empty(slot)
        self.A_MI[start : start + rank] = A_RI * scale
        self.B_MO[start : start + rank] = B_OR.T

    def empty(self, slot: int) -> None:
        """Zero a slot."""
        self._cut = None
        if self.A_MI is not None and self.B_MO is not None:
            self.A_MI[slot * self.rank : (slot + 1) * self.rank] = 0
            self.B_MO[slot * self.rank : (slot + 1) * self.rank] = 0

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return (B, T, O) in the base's dtype; x may be flattened to (B T, I)."""
        y_BTO: Tensor = self.base(x_BTI)
        if self.binding.span is None or self.A_MI is None or self.B_MO is None:
            return y_BTO
        if self.binding.apart and not self.binding.shared:
            return self._by_slot(y_BTO, x_BTI)
        first, last = self.binding.span
        low, high = first * self.rank, (last + 1) * self.rank
        # some decoders flatten to (B T, I) before their feed-forward layers
        x_BTI = x_BTI.float().reshape(len(self.binding.slots_B), -1, x_BTI.shape[-1])
        if self.binding.shared or x_BTI.shape[1] == 1:
            h_BTM = F.linear(x_BTI, self.A_MI[low:high])
            if not self.binding.shared:
                h_BTM *= self.binding.mask(self.rank, x_BTI.device)
            h_1JM, B_1MO = h_BTM.reshape(1, -1, high - low), self.B_MO[None, low:high]
            return _add(y_BTO, h_1JM, B_1MO)
        # prompts: many tokens a row, where a product for each row does not multiply by zeros
        index_B, live_B11 = self.binding.index(x_BTI.device)
        A_BRI = self.A_MI.unflatten(0, (-1, self.rank))[index_B]
        B_BRO = self.B_MO.unflatten(0, (-1, self.rank))[index_B]
        return _add(y_BTO, torch.bmm(x_BTI, A_BRI.mT) * live_B11, B_BRO)

    def _by_slot(self, y_BTO: Tensor, x_BTI: Tensor) -> Tensor:
        """No two rows of one slot: rows in the order of slots, and back."""
        lanes = self.binding.lanes(x_BTI.device)
        if self._cut is None or self._cut[0] is not lanes:
            assert self.A_MI is not None and self.B_MO is not None
            A_SRI, B_SRO = (w.unflatten(0, (-1, self.rank)) for w in (self.A_MI, self.B_MO))
            self._cut = (lanes, A_SRI[lanes.slots].mT, B_SRO[lanes.slots])
        _, A_SIR, B_SRO = self._cut
        add_STO = torch.bmm(torch.bmm(self.binding.laid(x_BTI, lanes), A_SIR), B_SRO)
        add_BTO = add_STO.index_select(0, lanes.back_B)
        if lanes.live_B11 is not None:
            add_BTO *= lanes.live_B11
        if y_BTO.dtype == torch.float32:  # in place, for nobody else holds y
            return y_BTO.add_(add_BTO.view_as(y_BTO))
        return (y_BTO + add_BTO.view_as(y_BTO)).to(y_BTO.dtype)


def _add(y_BTO: Tensor, h_KJR: Tensor, B_KRO: Tensor) -> Tensor:
    """Add h B to y in the base's dtype; in place where it is float32, for nobody else holds y."""
    y_KJO = y_BTO.reshape(len(h_KJR), -1, y_BTO.shape[-1])
    if y_BTO.dtype == torch.float32:
        return torch.baddbmm(y_KJO, h_KJR, B_KRO, out=y_KJO).view_as(y_BTO)
    return (y_KJO + torch.bmm(h_KJR, B_KRO)).to(y_BTO.dtype).view_as(y_BTO)


class Bank:
    """The adapters that lie on a base now, each in a slot, found by content id."""

    def __init__(self, model: Model, n_slots: int) -> None:
        """Put a layer of the bank where an adapter may go; `close` takes them away again."""
        self.model = model
        self.n_slots = n_slots
        self.binding = Binding()
        self.layers: dict[str, BankLinear] = {}
        self.slots: dict[str, int] = {}
        """Content id to slot, least recently used first."""
        self._n_users: dict[str, int] = {}
        sites = survey(model.network)[0]
        self.mixes = not any("experts" in site.projection.split(".") for site in sites)
        """False where experts receive tokens out of order, so that rows cannot be told apart."""
        for site in sites:
            base = model.network.get_submodule(site.name)
            if not isinstance(base, nn.Linear):
                raise AdapterError(f"{site.name!r} carries adapters already; detach them first.")
            self.layers[site.name] = BankLinear(base, self.binding).train(base.training)
        for name, layer in self.layers.items():
            model.network.set_submodule(name, layer)

    def take(self, identity: str, adapter: Adapter) -> int:
        """Return the slot of an adapter, filling one if it has none; hold it until `release`.

        Raises AdapterError when all slots are held.
        """
        slot = self.slots.pop(identity, None)
        if slot is None:
            slot = self._free_slot()
            self._fill(slot, adapter)
        self.slots[identity] = slot
        self._n_users[identity] = self._n_users.get(identity, 0) + 1
        return slot

    def release(self, identity: str) -> None:
        """Let go of an adapter; it stays in its slot until another one needs it."""
        self._n_users[identity] -= 1
        if not self._n_users[identity]:
            del self._n_users[identity]

    def retain(self, identities: Collection[str]) -> None:
        """Empty the slots of all other adapters, but for those that are held."""
        for identity in [i for i in self.slots if i not in identities and i not in self._n_users]:
            slot = self.slots.pop(identity)
            for layer in self.layers.values():
                layer.empty(slot)

    def close(self) -> None:
        """Put the original layers back; twice is harmless."""
        for name, layer in self.layers.items():
            self.model.network.set_submodule(name, layer.base)
        self.layers, self.slots, self._n_users = {}, {}, {}

    def _free_slot(self) -> int:
        free = set(range(self.n_slots)) - set(self.slots.values())
        if free:
            return min(free)
        idle = [identity for identity in self.slots if identity not in self._n_users]
        if not idle:
            raise AdapterError(f"all {self.n_slots} slots are held; wait for a row to end.")
        return self.slots.pop(idle[0])

    def _fill(self, slot: int, adapter: Adapter) -> None:
        names, config = set(adapter.modules), adapter.config
        # A layer may meet its first adapter in a low slot, beside rows of higher ones.
        room = _grown(1 + max([slot, *self.slots.values()]), self.n_slots)
        for name, layer in self.layers.items():
            if name in names:
                layer.reserve(room, config.rank)
                device = layer.weight.device
                A_RI, B_OR = (adapter.tensors[name + half].to(device) for half in HALVES)
                layer.fill(slot, A_RI, B_OR, config.scale)
            elif layer.A_MI is not None:
                layer.reserve(room, config.rank)
                layer.empty(slot)


def _grown(needed: int, limit: int) -> int:
    """Room for twice as many as are needed now, up to the limit: few copies, little waste."""
    return min(limit, 1 << (needed - 1).bit_length())


def check(adapter: Adapter, model: Model) -> None:
    """Refuse an adapter that does not fit the base, both ways, or that changes nothing.

    Raises WrongBase or AdapterError as `adapter.validate` does, NoEffect naming a module with a
    weight change of zero: a memory that loads and does nothing must not be served.
    """
    needs_plain([adapter], "serving many memories in one batch")
    validate(adapter, model.network, model.digest)
    norms: Mapping[str, float] = delta_norms(adapter)
    dead = [name for name, norm in norms.items() if not norm > 0]
    if dead:
        raise NoEffect(
            f"{len(dead)} of {len(norms)} modules have a weight change of zero, the first is "
            f"{dead[0]!r}; write the memory again."
        )
