"""Norms, attention and adapted linear layers of a decoder: forward and backward by hand.

Each forward returns what its backward needs; nothing is recorded for autograd. A and B are the only
weights with gradients.

Shape letters: B row, T token, C queried position, M tokens of all rows, D width, H heads, E width
of a head, I in-features, O out-features, R ranks of one input's adapters together, K blocks of
rows, N adapters of the stack, Z rows and heads together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lorewright.adapters.lora import LoraLinear, Rows
from lorewright.models.backends.reduced import DTYPE, Reduced

SCORE_BYTES = 8 << 20
"""Above this many bytes of attention scores a layer, torch's own attention never holds them all."""

Grads = dict[LoraLinear, tuple[Tensor, Tensor]]
"""Gradients of A_NRI and B_NOR."""


# Norms


class Normed(NamedTuple):
    """A norm's input over its size, one over that size, and its weight."""

    unit_MD: Tensor
    inverse_M1: Tensor
    weight_D: Tensor


def rms_norm(x_MD: Tensor, norm: Any) -> tuple[Tensor, Normed]:
    """RMS norm over the last axis: x / sqrt(mean x^2 + eps) * weight."""
    size_M1 = torch.linalg.vector_norm(x_MD, dim=-1, keepdim=True)
    inverse_M1 = size_M1.square_().div_(x_MD.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    unit_MD = x_MD * inverse_M1
    return unit_MD * norm.weight, Normed(unit_MD, inverse_M1, norm.weight)


def rms_norm_backward(grad_MD: Tensor, saved: Normed) -> Tensor:
    """Gradient of a norm's input."""
    unit_MD, inverse_M1, weight_D = saved
    scaled_MD = grad_MD * weight_D
    along_M1 = (scaled_MD * unit_MD).sum(-1, keepdim=True)
    return scaled_MD.addcmul_(unit_MD, along_M1, value=-1 / weight_D.shape[0]).mul_(inverse_M1)


# Linear layers of one input


class Blocks:
    """Which adapters the rows of a pass use: K equal blocks of rows, an adapter each."""

    def __init__(self, rows: Rows, scale_N: Tensor, n_rows: int) -> None:
        """Raises AdapterError when `rows` are of another batch."""
        self.index_K, live_K = rows.on(scale_N.device)
        self.in_order = rows.in_order
        rows.check(n_rows)
        self.flat = len(self.index_K) == 1
        """Whether all rows use one adapter: its factors then have two axes, without K."""
        scale_K = torch.where(live_K, scale_N[self.index_K], 0.0)
        self.scale = scale_K[0] if self.flat else scale_K[:, None, None]

    def pick(self, weight_NXY: Tensor) -> Tensor:
        """The part of every block (K, X, Y)."""
        if self.flat:
            return weight_NXY[0 if self.in_order else int(self.index_K)]
        return weight_NXY if self.in_order else weight_NXY[self.index_K]

    def unpick(self, grad_KXY: Tensor, weight_NXY: Tensor) -> Tensor:
        """The gradient (N, X, Y) from that of every block's part."""
        grad_KXY = grad_KXY[None] if self.flat else grad_KXY
        if self.in_order:
            return grad_KXY
        return torch.zeros_like(weight_NXY).index_add_(0, self.index_K, grad_KXY)

    def blocks(self, x_MX: Tensor) -> Tensor:
        """Tokens block by block (K, M, X)."""
        return x_MX if self.flat else x_MX.view(len(self.index_K), -1, x_MX.shape[1])

    def product(self, x_KXY: Tensor, y_KYZ: Tensor, out: Tensor | None = None) -> Tensor:
        """x y, block by block."""
        if self.flat:
            return torch.mm(x_KXY, y_KYZ) if out is None else torch.mm(x_KXY, y_KYZ, out=out)
        return torch.bmm(x_KXY, y_KYZ) if out is None else torch.bmm(x_KXY, y_KYZ, out=out)

    def add_product(self, into_MZ: Tensor, x_KXY: Tensor, y_KYZ: Tensor) -> None:
        """Add x y to the blocks of `into`."""
        if self.flat:
            into_MZ.addmm_(x_KXY, y_KYZ)
        else:
            self.blocks(into_MZ).baddbmm_(x_KXY, y_KYZ)


class Linears:
    """Linear layers of one input, side by side: their base weights and the adapters on them."""

    def __init__(
        self, bound: Blocks | None, reduced: Reduced | None, modules: Sequence[Any]
    ) -> None:
        plain = [m.base if isinstance(m, LoraLinear) else m for m in modules]
        self.weights = [reduced.weight(m) if reduced else m.weight for m in plain]
        self.dtype = None if reduced is None else DTYPE
        self.biases = [linear.bias for linear in plain]
        self.sizes = [len(weight) for weight in self.weights]
        self.bound = bound
        self.loras: list[tuple[int, LoraLinear]] = []
        """Adapted ones that this pass uses, with their place among the modules."""
        if bound is not None:
            self.loras = [(i, m) for i, m in enumerate(modules) if isinstance(m, LoraLinear)]
        self.ranks = [lora.A_NRI.shape[1] for _, lora in self.loras]

    def forward(self, x_MI: Tensor, into_MO: Tensor | None = None, *, save: bool) -> list[Tensor]:
        """The outputs (M, O) of each; with `into_MO`, of one layer, added to it."""
        if self.dtype:
            half_MI = x_MI.to(self.dtype)
            outputs = [torch.mm(half_MI, weight.t()).float() for weight in self.weights]
            if into_MO is not None:
                outputs[0].add_(into_MO)
        elif into_MO is None:
            outputs = [torch.mm(x_MI, weight.t()) for weight in self.weights]
        else:
            outputs = [torch.addmm(into_MO, x_MI, self.weights[0].t())]
        for bias, y_MO in zip(self.biases, outputs, strict=True):
            if bias is not None:
                y_MO.add_(bias)
        bound = self.bound
        if bound is None or not self.loras:
            return outputs
        down_KRI = bound.pick(self.loras[0][1].A_NRI)
        if len(self.loras) > 1:
            down_KRI = torch.cat([bound.pick(lora.A_NRI) for _, lora in self.loras], -2)
        down_KRI = down_KRI * bound.scale
        x_KMI = bound.blocks(x_MI)
        inner_KMR = bound.product(x_KMI, down_KRI.mT)
        for (i, lora), u_KMR in zip(self.loras, self._parts(inner_KMR), strict=True):
            bound.add_product(outputs[i], u_KMR, bound.pick(lora.B_NOR).mT)
        if save:
            self.saved = x_KMI, down_KRI, inner_KMR
        return outputs

    def backward(
        self,
        grads: Sequence[Tensor],
        grads_of: Grads,
        *,
        needed: bool = True,
    ) -> Tensor | None:
        """Gradient of the input; None if it is not needed."""
        total: Tensor | None = None
        for grad_MO, weight in zip(grads, self.weights, strict=True):
            if needed and self.dtype:
                part_MI = torch.mm(grad_MO.to(self.dtype), weight)
                total = part_MI.float() if total is None else total.add_(part_MI)
            elif needed and total is None:
                total = torch.mm(grad_MO, weight)
            elif needed and total is not None:
                total.addmm_(grad_MO, weight)
        bound = self.bound
        if bound is None or not self.loras:
            return total
        x_KMI, down_KRI, inner_KMR = self.saved
        back_KMR = torch.empty_like(inner_KMR)
        parts = self._parts(inner_KMR), self._parts(back_KMR)
        ups = []
        for (i, lora), u_KMR, back in zip(self.loras, *parts, strict=True):
            grad_KMO = bound.blocks(grads[i])
            bound.product(grad_KMO, bound.pick(lora.B_NOR), out=back)
            ups.append(bound.unpick(bound.product(grad_KMO.mT, u_KMR), lora.B_NOR))
        grad_KRI = bound.product(back_KMR.mT, x_KMI).mul_(bound.scale)
        downs = self._parts(grad_KRI, -2)
        for (_, lora), down_KrI, up_NOR in zip(self.loras, downs, ups, strict=True):
            grads_of[lora] = bound.unpick(down_KrI, lora.A_NRI), up_NOR
        if total is not None:
            bound.add_product(total, back_KMR, down_KRI)
        return total

    def _parts(self, all_KXX: Tensor, axis: int = -1) -> Sequence[Tensor]:
        """Each adapter's ranks, of those of all adapters on this input."""
        return (all_KXX,) if len(self.ranks) == 1 else all_KXX.split_with_sizes(self.ranks, axis)


# Attention


def heads(x_MHE: Tensor, n_rows: int) -> Tensor:
    """The same values, heads first (H, B, T, E)."""
    return x_MHE.view(n_rows, -1, *x_MHE.shape[1:]).permute(2, 0, 1, 3)


def rotate(
    x_HBTE: Tensor,
    table: tuple[Tensor, Tensor],
    out_HBTE: Tensor | None = None,
    *,
    inverse: bool = False,
) -> Tensor:
    """Rotate pairs (e, e + E/2) by their position's angle, or back, into `out`."""
    cos, sin = table
    if out_HBTE is None:
        out_HBTE = x_HBTE.new_empty(x_HBTE.shape)
    one, two = x_HBTE.chunk(2, -1)
    out_one, out_two = out_HBTE.chunk(2, -1)
    sign = -1 if inverse else 1
    torch.mul(one, cos, out=out_one)
    out_one.addcmul_(two, sin, value=-sign)
    torch.mul(two, cos, out=out_two)
    out_two.addcmul_(one, sin, value=sign)
    return out_HBTE


Scores = Tensor | tuple[Tensor, ...]
"""Attention's shares (HB, C, T), or, where they are too many, the graph that torch has of it."""


def attend(
    q_HBCE: Tensor, k_HBTE: Tensor, v_HBTE: Tensor, mask: Tensor, *, save: bool
) -> tuple[Tensor, Scores]:
    """softmax(q k' + mask) v; the scale is in q and k already."""
    n_heads, n_rows = q_HBCE.shape[:2]
    if 4 * n_heads * n_rows * mask.shape[-2] * mask.shape[-1] > SCORE_BYTES:
        with torch.set_grad_enabled(save):
            q, k, v = (part.detach().requires_grad_(save) for part in (q_HBCE, k_HBTE, v_HBTE))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return out.detach(), (out, q, k, v)
    mask_ZCT = mask.expand(n_heads, n_rows, *mask.shape[-2:]).flatten(0, 1)
    share_ZCT = torch.baddbmm(mask_ZCT, q_HBCE.flatten(0, 1), k_HBTE.flatten(0, 1).mT).softmax(-1)
    out_ZCE = torch.bmm(share_ZCT, v_HBTE.flatten(0, 1))
    return out_ZCE.unflatten(0, (n_heads, n_rows)), share_ZCT


def attend_backward(
    grad_HBCE: Tensor, q_HBCE: Tensor, k_HBTE: Tensor, v_HBTE: Tensor, scores: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    if isinstance(scores, tuple):
        out, *parts = scores
        grad_q, grad_k, grad_v = torch.autograd.grad(out, parts, grad_HBCE)
        return grad_q, grad_k, grad_v
    q, k, v, grad = (part.flatten(0, 1) for part in (q_HBCE, k_HBTE, v_HBTE, grad_HBCE))
    grad_v = torch.bmm(scores.mT, grad)
    change = torch._softmax_backward_data(torch.bmm(grad, v.mT), scores, -1, scores.dtype)
    return (
        torch.bmm(change, k).view_as(q_HBCE),
        torch.bmm(change.mT, q).view_as(k_HBTE),
        grad_v.view_as(v_HBTE),
    )
