"""Optimisers whose every quantity is per adapter: rate, clip, decay, step count, whether it steps.

Trained in one stack, adapters must not notice each other: gradients are clipped by each adapter's
own norm, moments and step counts are its own, and an adapter that has nothing to learn in a step
does not move. All A and B lie in one buffer (`lora.Flat`), so an update is a handful of vector
operations.

This room knows a stack's buffers and gradients. It knows nothing of losses, examples or schedules:
the rate of a step is an argument.

Shape letters: N adapters, P values of one adapter, R rank, I in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.lora import Flat, Stack
from lorewright.errors import ConfigError
from lorewright.models.backends.compiled import Matrices, Mover, load

BETAS = (0.9, 0.999)
EPS = 1e-8
MUON_MOMENTUM = 0.95
WHITENED = "whitened"
RIDGE = 0.05
"""Added to the Gram matrices of `preconditioned`, as a share of their largest diagonal entry."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How one adapter's weights move; the rate itself comes with every step."""

    name: str = "adamw"
    """A key of `OPTIMIZERS`; the same for all adapters of a stack."""
    lr_ratio: float = 1.0
    """Rate of B over the rate of A, at least 1 in LoRA+ (arXiv 2402.12354)."""
    weight_decay: float = 0.0
    """Decoupled: a step shrinks every weight by rate x decay."""
    clip: float = 1.0
    """Largest norm of the adapter's whole gradient."""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.name not in OPTIMIZERS:
            raise ConfigError(
                f"optimizer {self.name!r} is unknown; use one of {', '.join(sorted(OPTIMIZERS))}."
            )
        for name, value in (("lr_ratio", self.lr_ratio), ("clip", self.clip)):
            if not value > 0:
                raise ConfigError(f"{name} must be above 0; found {value}.")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay must be at least 0; found {self.weight_decay}.")


class Basis(NamedTuple):
    """A symmetric matrix W (I, I) = rest + U gain U', by which a layer's inputs are seen."""

    side_IK: Tensor
    gain_K: Tensor
    rest: float

    def to(self, device: torch.device) -> Basis:
        """The same on a device."""
        return Basis(self.side_IK.to(device), self.gain_K.to(device), self.rest)


Bases = Mapping[str, Basis]
"""By the names of a stack's layers."""


class Group(NamedTuple):
    """Values in a flat buffer of those A that have bases of one width, equally many to a basis."""

    spans: list[slice]
    whole_LII: Tensor | None
    """Every W itself, where a product with it costs no more than with its factors."""
    side_LIK: Tensor
    gain_L1K: Tensor
    rest_L11: Tensor

    @classmethod
    def of(cls, bases: Sequence[Basis], spans_L: Sequence[Sequence[slice]]) -> Group:
        """Bases with the spans that each is for; fewer sides are filled up with zeros."""
        most = max(len(basis.gain_K) for basis in bases)
        filled = [(basis, (0, most - len(basis.gain_K))) for basis in bases]
        rests = torch.tensor([basis.rest for basis in bases], device=bases[0].side_IK.device)
        side_LIK = torch.stack([F.pad(basis.side_IK, end) for basis, end in filled])
        gain_L1K = torch.stack([F.pad(basis.gain_K, end) for basis, end in filled])[:, None]
        whole_LII = None
        if (width := side_LIK.shape[1]) <= 2 * most:
            whole_LII = torch.bmm(side_LIK * gain_L1K, side_LIK.mT)
            whole_LII += rests[:, None, None] * torch.eye(width, device=rests.device)
        spans = [span for spans in spans_L for span in spans]
        return cls(spans, whole_LII, side_LIK, gain_L1K, rests[:, None, None])

    def whole(self) -> Tensor:
        """Every W (L, I, I)."""
        if self.whole_LII is not None:
            return self.whole_LII
        eye_II = torch.eye(self.side_LIK.shape[1], device=self.rest_L11.device)
        return torch.bmm(self.side_LIK * self.gain_L1K, self.side_LIK.mT) + self.rest_L11 * eye_II

    def turn_exactly(self, values_P: Tensor) -> None:
        """`turn` in float64, whose rounding does not depend on how many rows the A have."""
        each = len(self.spans) // len(self.side_LIK)
        for i, basis_II in enumerate(self.whole().double()):
            for span in self.spans[each * i : each * (i + 1)]:
                a_RI = values_P[span].view(-1, len(basis_II))
                a_RI.copy_(a_RI.double() @ basis_II)

    def turn(self, values_P: Tensor) -> None:
        """Replace every A by A W."""
        parts = [values_P[span] for span in self.spans]
        x_LXI = torch.cat(parts).view(len(self.side_LIK), -1, self.side_LIK.shape[1])
        if self.whole_LII is not None:
            x_LXI = torch.bmm(x_LXI, self.whole_LII)
        else:
            inner_LXK = torch.bmm(x_LXI, self.side_LIK).mul_(self.gain_L1K)
            x_LXI.mul_(self.rest_L11).baddbmm_(inner_LXK, self.side_LIK.mT)
        torch._foreach_copy_(parts, x_LXI.flatten().split(list(map(len, parts))))


class Optimizer:
    """Moves the adapters of a stack, each by its own config.

    Raises ConfigError when the configs name different optimisers: their state would differ.
    """

    def __init__(self, stack: Stack, configs: Sequence[OptimizerConfig]) -> None:
        names = {config.name for config in configs}
        if len(names) != 1:
            raise ConfigError(
                f"the adapters of one stack need one optimizer; found {', '.join(sorted(names))}; "
                "write them in separate stacks."
            )
        self.stack = stack
        self.configs = list(configs)
        self.bases: list[Bases] = [{}] * len(configs)
        self.direction = OPTIMIZERS[names.pop()]
        self.movers: list[Mover] | None = None
        self._rebind()
        self.steps_N1 = torch.zeros(len(configs), 1, device=self.grads[0].device)
        self.moments = [{name: torch.zeros_like(g) for name in MOMENTS} for g in self.grads]

    def _rebind(self) -> None:
        self.grads = [torch.zeros_like(flat.weight_NP) for flat in self.stack.flats]
        self.views = [
            grad_NP[:, span].unflatten(1, shape)
            for flat, grad_NP in zip(self.stack.flats, self.grads, strict=True)
            for span, shape in flat.spans
        ]
        self.ratios = [self._ratios(flat) for flat in self.stack.flats]
        self.groups = [self._grouped(flat) for flat in self.stack.flats]
        device = self.grads[0].device
        decays = [config.weight_decay for config in self.configs]
        self.clip_N = torch.tensor([config.clip for config in self.configs], device=device)
        self.decay_N1 = torch.tensor(decays, device=device)[:, None]
        self.decays = any(decays)
        self.movers = None
        self.whole_NP: Tensor | None = None
        """All parameters in one: a pass that is told of it (`Rows`) may give it their gradient."""
        if len(self.stack.flats) == 1:
            self.whole_NP = self.stack.flats[0].weight_NP.detach().requires_grad_()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What gradients are taken of."""
        return [weight for flat in self.stack.flats for weight in flat.parameters]

    def gradients(self, loss: Tensor) -> tuple[Sequence[Tensor | None], Tensor | None]:
        """What `step` takes: gradients one by one or, from a pass that has it, the whole."""
        if self.whole_NP is None:
            return torch.autograd.grad(loss, self.parameters, allow_unused=True), None
        every = [*self.parameters, self.whole_NP]
        *grads, whole_NP = torch.autograd.grad(loss, every, allow_unused=True)
        return grads, whole_NP

    def whiten(self, bases: Sequence[Bases]) -> None:
        """Give every adapter the bases in which `whitened` moves it; of those that learn the same
        rows they may be one object."""
        self.bases = list(bases)
        self.groups = [self._grouped(flat) for flat in self.stack.flats]
        self.movers = None

    def _grouped(self, flat: Flat) -> list[list[Group]]:
        """Of every adapter the A with bases, by width."""
        device = flat.weight_NP.device
        layers = [name for name, x in self.stack.modules.items() if x.A_NRI.device == device]
        places = list(zip(layers, flat.spans[::2], strict=True)) if any(self.bases) else []
        made: dict[int, list[Group]] = {}
        for bases in self.bases:
            if id(bases) in made:
                continue
            # Layers of one input share a basis.
            spans_of: dict[tuple[int, int], tuple[Basis, list[slice]]] = {}
            for name, (span, _) in places:
                basis, size = bases[name], span.stop - span.start  # ranks differ between layers
                spans_of.setdefault((id(basis), size), (basis, []))[1].append(span)
            alike: dict[tuple[int, int, int], list[tuple[Basis, list[slice]]]] = {}
            for (_, size), (basis, spans) in spans_of.items():
                key = len(basis.side_IK), len(spans), size
                alike.setdefault(key, []).append((basis, spans))
            made[id(bases)] = [Group.of(*zip(*parts, strict=True)) for parts in alike.values()]
        return [made[id(bases)] for bases in self.bases]

    def turn(self, n: int) -> None:
        """Bring adapter n's A, as drawn, into its bases; alike whatever it is stacked with."""
        for flat, groups_N in zip(self.stack.flats, self.groups, strict=True):
            for group in groups_N[n]:
                group.turn_exactly(flat.weight_NP[n])

    def _ratios(self, flat: Flat) -> Tensor | None:
        """Rate of every value over its adapter's rate (N, P); None when all are 1."""
        ratios = [config.lr_ratio for config in self.configs]
        if all(ratio == 1 for ratio in ratios):
            return None
        ratio_N1 = torch.tensor(ratios, device=flat.weight_NP.device)[:, None]
        return torch.where(flat.is_B_P, ratio_N1, 1.0)

    @torch.no_grad()
    def step(
        self,
        grads: Sequence[Tensor | None],
        lr_N: Sequence[float],
        live_N: Tensor,
        whole_NP: Tensor | None = None,
    ) -> None:
        """Move every live adapter at its rate; the others and their state stay as they are.

        `grads` belong to `parameters`, in their order; None is zero. `whole_NP`, the gradient of
        the buffer, stands for all of them. In torch nothing is read back from the device.
        """
        if self._compiled():
            if whole_NP is None:
                self._gather(grads)
            self._step_compiled(self.grads[0] if whole_NP is None else whole_NP, lr_N, live_N)
            return
        if whole_NP is None:
            self._gather(grads)
        else:
            self.grads[0].copy_(whole_NP)
        here = live_N.device
        sizes = [torch.linalg.vector_norm(g, dim=1).to(here) for g in self.grads]
        norm_N = sizes[0] if len(sizes) == 1 else torch.stack(sizes).square().sum(0).sqrt()
        factor_N1 = (self.clip_N.to(here) / (norm_N + 1e-6)).clamp(max=1.0)[:, None]
        live_N1 = live_N.float()[:, None]
        lr_N1 = torch.tensor(lr_N, device=here)[:, None] * live_N1
        self.steps_N1 += live_N1
        for flat, grad_NP, moments, ratio_NP, groups_N in zip(
            self.stack.flats, self.grads, self.moments, self.ratios, self.groups, strict=True
        ):
            device = grad_NP.device
            grad_NP.mul_(factor_N1.to(device))
            rate = lr_N1.to(device)
            state = State(moments, self.steps_N1.to(device), live_N1.to(device), groups_N)
            update = self.direction(flat, grad_NP, state)
            if self.decays:
                shrink = rate * self.decay_N1.to(device)
                flat.weight_NP.mul_(
                    1 - (shrink if flat.decayed_P is None else shrink * flat.decayed_P)
                )
            rate = rate if ratio_NP is None else rate * ratio_NP
            flat.weight_NP.addcmul_(update, rate, value=-1)

    def _gather(self, grads: Sequence[Tensor | None]) -> None:
        for view, grad in zip(self.views, grads, strict=True):
            if grad is None:
                view.zero_()
            else:
                view.copy_(grad)

    def _compiled(self) -> bool:
        """Whether the step is one that compiled code has, where there is any: Adam on a CPU."""
        if self.direction not in (adamw, whitened) or len(self.stack.flats) != 1:
            return False
        (flat,), (groups_N,) = self.stack.flats, self.groups
        if flat.weight_NP.device.type != "cpu" or flat.decayed_P is not None:
            return False
        every = [group for groups in groups_N for group in groups]
        if self.direction is whitened and not all(groups_N):
            return False
        if any(group.whole_LII is None for group in every):  # wide layers: factors cost less
            return False
        if self.movers is None:
            library = load().library
            if library is None:
                return False
            made: dict[int, Tensor] = {}
            parts_N = [self._matrices(flat, n) for n in range(len(self.configs))]
            self.movers = [Mover(library, parts, made) for parts in parts_N]
        return True

    def _matrices(self, flat: Flat, n: int) -> list[Matrices]:
        """Adapter n's A by basis, then all else."""
        rest, found = [span for span, _ in flat.spans], []
        if self.direction is whitened:
            for group in self.groups[0][n]:
                each = len(group.spans) // len(group.side_LIK)
                for i, basis_II in enumerate(group.whole()):
                    spans = group.spans[each * i : each * (i + 1)]
                    width = len(basis_II)
                    starts = [span.start for span in spans]
                    rows = (spans[0].stop - starts[0]) // width
                    found.append(Matrices(starts, rows, width, basis_II, 1.0))
            rest = [span for i, (span, _) in enumerate(flat.spans) if i % 2]
        ratio = self.configs[n].lr_ratio
        for span in rest:
            of_B = bool(flat.is_B_P[span.start])
            size = span.stop - span.start
            found.append(Matrices([span.start], 1, size, None, ratio if of_B else 1.0))
        return found

    def _step_compiled(self, grad_NP: Tensor, lr_N: Sequence[float], live_N: Tensor) -> None:
        assert self.movers is not None
        (flat,), (moments,) = self.stack.flats, self.moments
        self.steps_N1 += live_N[:, None]
        steps = self.steps_N1[:, 0].tolist()
        for n, (mover, config, live) in enumerate(
            zip(self.movers, self.configs, live_N.tolist(), strict=True)
        ):
            if live:
                mover.move(
                    flat.weight_NP[n],
                    [moments[name][n] for name in MOMENTS],
                    grad_NP[n],
                    clip=config.clip,
                    steps=steps[n],
                    betas=BETAS,
                    eps=EPS,
                    rate=lr_N[n],
                    decay=config.weight_decay,
                )

    def drop(self, n: int) -> None:
        """Forget adapter n, after `Stack.drop(n)` took it out."""
        keep = [i for i in range(len(self.configs)) if i != n]
        self.configs = [self.configs[i] for i in keep]
        self.bases = [self.bases[i] for i in keep]
        self.steps_N1 = self.steps_N1[keep]
        self.moments = [
            {name: moment[keep] for name, moment in moments.items()} for moments in self.moments
        ]
        self._rebind()

    def tensors(self, n: int) -> dict[str, Tensor]:
        """Adapter n's state: step count and moments, copied to the CPU."""
        found = {"steps": self.steps_N1[n].to("cpu", copy=True)}
        for i, moments in enumerate(self.moments):
            for name, moment in moments.items():
                found[f"{name}.{i}"] = moment[n].to("cpu", copy=True)
        return found

    def load(self, n: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy what `tensors` returned into adapter n's state."""
        self.steps_N1[n] = tensors["steps"].to(self.steps_N1.device)
        for i, moments in enumerate(self.moments):
            for name, moment in moments.items():
                moment[n] = tensors[f"{name}.{i}"].to(moment.device)


# Directions: gradient and state -> what is subtracted, before the rate


class State(NamedTuple):
    """What a direction reads and moves on: moments (N, P), steps so far, and who moves at all."""

    moments: Mapping[str, Tensor]
    steps_N1: Tensor
    live_N1: Tensor
    """1 where an adapter moves and 0 where its state must stay."""
    groups_N: Sequence[Sequence[Group]] = ()


Direction = Callable[[Flat, Tensor, State], Tensor]
"""(flat, grad_NP, state) -> update_NP; the gradient may be overwritten."""
MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
    """Adam's direction with bias correction (arXiv 1711.05101; decay is applied outside).

    On a CPU an adapter at a time, so that its values stay in the cache between the operations.
    """
    first_NP, second_NP = (state.moments[name] for name in MOMENTS)
    size = 1 if grad_NP.device.type == "cpu" else len(grad_NP)
    scratch = torch.empty_like(grad_NP[:size])
    for n in range(0, len(grad_NP), size):
        rows = slice(n, n + size)
        first, second, grad = first_NP[rows], second_NP[rows], grad_NP[rows]
        live_N1, steps_N1 = state.live_N1[rows], state.steps_N1[rows].clamp(min=1)
        first.lerp_(grad, (1 - BETAS[0]) * live_N1)
        second.lerp_(torch.mul(grad, grad, out=scratch), (1 - BETAS[1]) * live_N1)
        torch.div(second, 1 - BETAS[1] ** steps_N1, out=scratch).sqrt_().add_(EPS)
        torch.div(first, 1 - BETAS[0] ** steps_N1, out=grad).div_(scratch)
    return grad_NP


def preconditioned(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
    """Adam on gradients preconditioned by the other factor.

    G_A <- (B'B)^-1 G_A and G_B <- G_B (AA')^-1. The step in ΔW then depends less than Adam's own
    on how ΔW is split into factors. Source: Riemannian Preconditioned LoRA, arXiv 2402.02347; the
    ridge is there because B starts at zero. Departure: the gradient keeps the norm it had.
    """
    changed = grad_NP.clone()
    for (at_A, shape_A), (at_B, shape_B) in zip(flat.spans[::2], flat.spans[1::2], strict=True):
        a_NRI = flat.weight_NP[:, at_A].unflatten(1, shape_A)
        b_NOR = flat.weight_NP[:, at_B].unflatten(1, shape_B)
        g_NRI = grad_NP[:, at_A].unflatten(1, shape_A)
        g_NOR = grad_NP[:, at_B].unflatten(1, shape_B)
        changed[:, at_A] = _solve(b_NOR.mT @ b_NOR, g_NRI).flatten(1)
        changed[:, at_B] = _solve(a_NRI @ a_NRI.mT, g_NOR.mT).mT.flatten(1)
    return adamw(flat, changed, state)


def _solve(gram_NRR: Tensor, g_NRX: Tensor) -> Tensor:
    """(Gram + ridge)^-1 G with G's norm kept; padding has no Gram, no gradient, and stays 0."""
    largest_N = gram_NRR.diagonal(dim1=1, dim2=2).amax(1)
    eye_RR = torch.eye(gram_NRR.shape[-1], device=gram_NRR.device)
    ridge_N11 = (1e-8 + RIDGE * largest_N)[:, None, None]
    found = torch.linalg.solve(gram_NRR + ridge_N11 * eye_RR, g_NRX)
    norms = [x.flatten(1).norm(dim=1).clamp(min=1e-30) for x in (g_NRX, found)]
    return found * (norms[0] / norms[1])[:, None, None]


def whitened(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
    """Adam on A in a basis that makes what its layer reads white; on B as it is.

    With W = (C + ridge)^(-1/2), C the inputs' second moments, A = A' W and Adam moves A': all
    directions of the inputs are learnt at one pace, not the large ones first. The input factor of
    K-FAC (arXiv 1503.05671) at the start of the write, with Adam (as SOAP, arXiv 2409.11321, has it
    in the basis of the gradients) on top. Raises ConfigError when no bases were given.
    """
    if not any(state.groups_N):
        raise ConfigError(
            "optimizer 'whitened' has no bases to move in; give it some with `whiten`."
        )
    _turn(grad_NP, state.groups_N)
    update_NP = adamw(flat, grad_NP, state)
    _turn(update_NP, state.groups_N)
    return update_NP


def _turn(values_NP: Tensor, groups_N: Sequence[Sequence[Group]]) -> None:
    """Replace every A of every adapter by A W."""
    for values_P, groups in zip(values_NP, groups_N, strict=True):
        for group in groups:
            group.turn(values_P)


def muon(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
    """Momentum of every A and B with its singular values made equal, at the size of an Adam step.

    Quintic Newton–Schulz in float32 (K. Jordan, 2024), scaled by 0.2 sqrt(width of the layer), so
    that rates that suit AdamW suit it (Moonlight, arXiv 2502.16982, has the larger side).
    """
    velocity = state.moments["exp_avg"]
    velocity.mul_(1 - (1 - MUON_MOMENTUM) * state.live_N1).add_(grad_NP * state.live_N1)
    update = torch.empty_like(grad_NP)
    for i, (span, shape) in enumerate(flat.spans):
        heavy = grad_NP[:, span] + MUON_MOMENTUM * velocity[:, span]
        found = orthogonalised(heavy.unflatten(1, shape))
        wide = shape[1] if i % 2 == 0 else shape[0]  # of A and of B; not the rank, which is padded
        update[:, span] = (0.2 * wide**0.5 * found).flatten(1)
    return update


def orthogonalised(grad_NMK: Tensor, n_iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end up between 0.7 and 1.2.

    Zero rows and columns, such as the padding of a smaller rank, stay zero.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = grad_NMK.shape[1] <= grad_NMK.shape[2]
    x = grad_NMK if wide else grad_NMK.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(n_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


OPTIMIZERS: dict[str, Direction] = {
    "adamw": adamw,
    "preconditioned": preconditioned,
    "muon": muon,
    WHITENED: whitened,
}
