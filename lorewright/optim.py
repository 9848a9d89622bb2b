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

from lorewright.errors import ConfigError
from lorewright.lora import Flat, Stack

BETAS = (0.9, 0.999)
EPS = 1e-8
MUON_MOMENTUM = 0.95
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
        self.direction = OPTIMIZERS[names.pop()]
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
        device = self.grads[0].device
        decays = [config.weight_decay for config in self.configs]
        self.clip_N = torch.tensor([config.clip for config in self.configs], device=device)
        self.decay_N1 = torch.tensor(decays, device=device)[:, None]
        self.decays = any(decays)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What gradients are taken of."""
        return [weight for flat in self.stack.flats for weight in flat.parameters]

    def _ratios(self, flat: Flat) -> Tensor | None:
        """Rate of every value over its adapter's rate (N, P); None when all are 1."""
        ratios = [config.lr_ratio for config in self.configs]
        if all(ratio == 1 for ratio in ratios):
            return None
        ratio_N1 = torch.tensor(ratios, device=flat.weight_NP.device)[:, None]
        return torch.where(flat.is_B_P, ratio_N1, 1.0)

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None], lr_N: Sequence[float], live_N: Tensor) -> None:
        """Move every live adapter at its rate; the others and their state stay as they are.

        `grads` belong to `parameters`, in their order; None is zero. Nothing is read back from the
        device.
        """
        for view, grad in zip(self.views, grads, strict=True):
            if grad is None:
                view.zero_()
            else:
                view.copy_(grad)
        here = live_N.device
        squares_N = torch.stack([g.square().sum(1).to(here) for g in self.grads]).sum(0)
        factor_N1 = (self.clip_N.to(here) / (squares_N.sqrt() + 1e-6)).clamp(max=1.0)[:, None]
        live_N1 = live_N.float()[:, None]
        lr_N1 = torch.tensor(lr_N, device=here)[:, None] * live_N1
        self.steps_N1 += live_N1
        for flat, grad_NP, moments, ratio_NP in zip(
            self.stack.flats, self.grads, self.moments, self.ratios, strict=True
        ):
            device = grad_NP.device
            grad_NP.mul_(factor_N1.to(device))
            rate = lr_N1.to(device)
            state = State(moments, self.steps_N1.to(device), live_N1.to(device))
            update = self.direction(flat, grad_NP, state)
            if self.decays:
                shrink = rate * self.decay_N1.to(device)
                flat.weight_NP.mul_(
                    1 - (shrink if flat.decayed_P is None else shrink * flat.decayed_P)
                )
            flat.weight_NP.sub_(update.mul_(rate if ratio_NP is None else rate * ratio_NP))

    def drop(self, n: int) -> None:
        """Forget adapter n, after `Stack.drop(n)` took it out."""
        keep = [i for i in range(len(self.configs)) if i != n]
        self.configs = [self.configs[i] for i in keep]
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


Direction = Callable[[Flat, Tensor, State], Tensor]
"""(flat, grad_NP, state) -> update_NP, a new tensor."""
MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
    """Adam's direction with bias correction (arXiv 1711.05101; decay is applied outside)."""
    first, second = state.moments["exp_avg"], state.moments["exp_avg_sq"]
    first.lerp_(grad_NP, (1 - BETAS[0]) * state.live_N1)
    second.lerp_(grad_NP.square(), (1 - BETAS[1]) * state.live_N1)
    steps_N1 = state.steps_N1.clamp(min=1)
    size = (second / (1 - BETAS[1] ** steps_N1)).sqrt_().add_(EPS)
    return (first / (1 - BETAS[0] ** steps_N1)).div_(size)


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
}
