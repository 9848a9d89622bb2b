"""Optimisers whose every quantity is per adapter: rate, clip, decay, step count, whether it steps.

Trained in one stack, adapters must not affect each other: gradients are clipped by each adapter's
own norm, moments and step counts are its own, and an adapter that has nothing to learn in a step
does not move. All A and B lie in one buffer (`lora.Flat`), so an update is a handful of vector
operations.

Knows a stack's buffers and gradients. It knows nothing of losses, examples or schedules: the rate
of a step is an argument.

Shape letters: N adapters, P values of one adapter, R rank, I in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lorewright.adapters.lora import Flat, Stack
from lorewright.errors import ConfigError
from lorewright.models.backends.compiled.adam import Matrices, Mover
from lorewright.models.backends.compiled.library import load
from lorewright.training.whitening import Bases, Group, grouped

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
                raise ConfigError(f"{name} must be above 0; got {value}.")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay must be at least 0; got {self.weight_decay}.")


class Optimizer:
    """Moves the adapters of a stack, each by its own config.

    Raises ConfigError when the configs name different optimisers: their state would differ.
    """

    def __init__(self, stack: Stack, configs: Sequence[OptimizerConfig]) -> None:
        names = {config.name for config in configs}
        if len(names) != 1:
            raise ConfigError(
                f"the adapters of one stack need one optimizer; got {', '.join(sorted(names))}; "
                "write them in separate stacks."
            )
        self.stack = stack
        self.configs = list(configs)
        self.bases: list[Bases] = [{}] * len(configs)
        self.null_spaces: list[Bases] = [{}] * len(configs)
        self.direction = OPTIMIZERS[names.pop()]
        self._bind()
        self.steps_N1 = stack.flats[0].weight_NP.new_zeros(len(configs), 1)
        self.moments = [flat.weight_NP.new_zeros(2, *flat.weight_NP.shape) for flat in stack.flats]

    def _bind(self) -> None:
        """Work on the stack's buffers as they are now."""
        flats = self.stack.flats
        self.whole_NP: Tensor | None = None
        """All parameters in one: a `Pass` with it may return their gradient at once."""
        if len(flats) == 1:
            self.whole_NP = flats[0].weight_NP.detach().requires_grad_()
        self.whiten(self.bases)
        self.confine(self.null_spaces)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What gradients are of."""
        return [weight for flat in self.stack.flats for weight in flat.parameters]

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of every buffer (N, P): what `step` needs."""
        whole = [] if self.whole_NP is None else [self.whole_NP]
        grads = torch.autograd.grad(loss, [*self.parameters, *whole], allow_unused=True)
        whole_NP = grads[-1] if whole else None
        return self.gathered(grads) if whole_NP is None else [whole_NP]

    def gathered(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """Gradients of all parameters, in their order, as those of the buffers; None is zero."""
        left, whole = iter(grads), []
        for flat in self.stack.flats:
            pairs = zip(flat.parameters, left, strict=False)
            parts = [torch.zeros_like(w) if grad is None else grad for w, grad in pairs]
            whole.append(torch.cat([part.flatten(1) for part in parts], 1))
        return whole

    def whiten(self, bases: Sequence[Bases]) -> None:
        """Give every adapter the bases in which `whitened` moves it; {} for none.

        Adapters that learn the same rows may share one object.
        """
        self.bases = list(bases)
        self.groups = [grouped(self.stack, flat, bases) for flat in self.stack.flats]
        self.movers: list[Mover] | None = None

    def confine(self, null_spaces: Sequence[Bases]) -> None:
        """Give every adapter the projections that keep its A within a subspace; {} for none.

        After every step A is projected; one that is drawn elsewhere is brought there by `project`.
        """
        self.null_spaces = list(null_spaces)
        self.projections = [grouped(self.stack, flat, null_spaces) for flat in self.stack.flats]

    @torch.no_grad()
    def project(self, n: int) -> None:
        """Bring adapter n's A into its subspace, in place."""
        for flat, groups_N in zip(self.stack.flats, self.projections, strict=True):
            for group in groups_N[n]:
                group.apply(flat.weight_NP[n])

    def bring_into_bases(self, n: int) -> None:
        """Replace adapter n's A, as drawn, by A W; the same whatever it is stacked with."""
        for flat, groups_N in zip(self.stack.flats, self.groups, strict=True):
            for group in groups_N[n]:
                group.apply_exactly(flat.weight_NP[n])

    def step(self, grads: Sequence[Tensor], lr_N: Sequence[float], live_N: Tensor) -> None:
        """Move every live adapter at its rate; the others and their state stay as they are.

        `grads` (N, P) are of the stack's buffers. In torch nothing is read back from the device.
        """
        self._move(grads, lr_N, live_N)
        for n in range(len(self.configs)):
            self.project(n)

    @torch.no_grad()
    def _move(self, grads: Sequence[Tensor], lr_N: Sequence[float], live_N: Tensor) -> None:
        live_N1 = live_N[:, None].float()
        self.steps_N1 += live_N1
        if self._compiled():
            self._step_compiled(grads[0], lr_N, live_N)
            return
        here, configs = live_N.device, self.configs
        settings = [
            (lr, c.clip, c.weight_decay, c.lr_ratio) for lr, c in zip(lr_N, configs, strict=True)
        ]
        settings_N4 = torch.tensor(settings, dtype=torch.float32, device=here)
        lr_N1, clip_N1, decay_N1, ratio_N1 = settings_N4[:, :, None].unbind(1)
        sizes = [torch.linalg.vector_norm(g, dim=1, keepdim=True).to(here) for g in grads]
        norm_N1 = sizes[0] if len(sizes) == 1 else torch.stack(sizes).square().sum(0).sqrt()
        factor_N1 = (clip_N1 / (norm_N1 + 1e-6)).clamp(max=1.0)
        for flat, grad_NP, (first_NP, second_NP), groups_N in zip(
            self.stack.flats, grads, self.moments, self.groups, strict=True
        ):
            device = grad_NP.device
            clipped_NP = grad_NP * factor_N1.to(device)
            steps_N1, live_N1 = self.steps_N1.to(device), live_N1.to(device)
            state = State(first_NP, second_NP, steps_N1, live_N1, groups_N)
            update, rate = self.direction(flat, clipped_NP, state), lr_N1.to(device) * live_N1
            if any(config.weight_decay for config in configs):
                shrink = rate * decay_N1.to(device)
                shrink = shrink if flat.decayed_P is None else shrink * flat.decayed_P
                flat.weight_NP.mul_(1 - shrink)
            if any(config.lr_ratio != 1 for config in configs):
                rate = rate * torch.where(flat.is_B_P, ratio_N1.to(device), 1.0)
            flat.weight_NP.addcmul_(update, rate, value=-1)

    def _compiled(self) -> bool:
        """Whether compiled code can do the step, and is there: Adam of one buffer on a CPU."""
        if self.direction not in (adamw, whitened) or len(self.stack.flats) != 1:
            return False
        (flat,), (groups_N,) = self.stack.flats, self.groups
        if flat.weight_NP.device.type != "cpu" or flat.decayed_P is not None:
            return False
        if self.direction is whitened and not all(groups_N):
            return False
        # For wide layers the factors of a basis cost less than the matrix that compiled code takes.
        if any(group.whole_LII is None for groups in groups_N for group in groups):
            return False
        if self.movers is None:
            library = load().library
            if library is None:
                return False
            shared: dict[int, Tensor] = {}
            parts_N = [self._matrices(flat, n) for n in range(len(self.configs))]
            self.movers = [Mover(library, parts, shared) for parts in parts_N]
        return True

    def _matrices(self, flat: Flat, n: int) -> list[Matrices]:
        """Adapter n's A by basis, then all else."""
        rest, parts = [span for span, _ in flat.spans], []
        if self.direction is whitened:
            for group in self.groups[0][n]:
                for basis_II, spans in group.by_basis():
                    width = len(basis_II)
                    n_rows = (spans[0].stop - spans[0].start) // width
                    starts = [span.start for span in spans]
                    parts.append(Matrices(starts, n_rows, width, basis_II, 1.0))
            rest = rest[1::2]
        ratio = self.configs[n].lr_ratio
        for span in rest:
            own = ratio if flat.is_B_P[span.start] else 1.0
            parts.append(Matrices([span.start], 1, span.stop - span.start, None, own))
        return parts

    def _step_compiled(self, grad_NP: Tensor, lr_N: Sequence[float], live_N: Tensor) -> None:
        assert self.movers is not None
        (flat,), (moments_2NP,) = self.stack.flats, self.moments
        for n in live_N.nonzero()[:, 0].tolist():
            self.movers[n].move(
                flat.weight_NP[n],
                moments_2NP[:, n].unbind(),
                grad_NP[n],
                clip=self.configs[n].clip,
                steps=self.steps_N1[n].item(),
                betas=BETAS,
                eps=EPS,
                rate=lr_N[n],
                decay=self.configs[n].weight_decay,
            )

    def drop(self, n: int) -> None:
        """Forget adapter n, after `Stack.drop(n)` has removed it."""
        del self.configs[n], self.bases[n], self.null_spaces[n]
        rest = [i for i in range(len(self.steps_N1)) if i != n]
        self.steps_N1 = self.steps_N1[rest]
        self.moments = [moments_2NP[:, rest] for moments_2NP in self.moments]
        self._bind()

    def tensors(self, n: int) -> dict[str, Tensor]:
        """Views of adapter n's state: its step count, and two moments for every buffer."""
        moments = {f"moments.{i}": each[:, n] for i, each in enumerate(self.moments)}
        return {"steps": self.steps_N1[n], **moments}


# Directions: gradient and state -> what is subtracted, before the rate


class State(NamedTuple):
    """What a direction reads, and the moments that it moves on."""

    first_NP: Tensor
    second_NP: Tensor
    steps_N1: Tensor
    live_N1: Tensor
    """1 where an adapter moves and 0 where its state must stay."""
    groups_N: Sequence[Sequence[Group]] = ()


Direction = Callable[[Flat, Tensor, State], Tensor]
"""(flat, grad_NP, state) -> update_NP; the gradient may be overwritten."""


def adamw(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
    """Adam's direction with bias correction (arXiv 1711.05101; decay is applied outside).

    On a CPU an adapter at a time, so that its values stay in the cache between the operations.
    """
    size = 1 if grad_NP.device.type == "cpu" else len(grad_NP)
    scratch = torch.empty_like(grad_NP[:size])
    for n in range(0, len(grad_NP), size):
        rows = slice(n, n + size)
        first, second, grad = state.first_NP[rows], state.second_NP[rows], grad_NP[rows]
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
    ridge is there because B starts at zero. Departure: the gradient's norm stays as it was.
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
    """(Gram + ridge)^-1 G at G's norm; padding has no Gram, no gradient, and stays 0."""
    largest_N = gram_NRR.diagonal(dim1=1, dim2=2).amax(1)
    eye_RR = torch.eye(gram_NRR.shape[-1], device=gram_NRR.device)
    ridge_N11 = (1e-8 + RIDGE * largest_N)[:, None, None]
    solved = torch.linalg.solve(gram_NRR + ridge_N11 * eye_RR, g_NRX)
    norms = [x.flatten(1).norm(dim=1).clamp(min=1e-30) for x in (g_NRX, solved)]
    return solved * (norms[0] / norms[1])[:, None, None]


def whitened(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
    """Adam on A in a basis that makes what its layer reads white; on B as it is.

    With W = (C + ridge)^(-1/2), C the inputs' second moments, A = A' W and Adam moves A': all
    directions of the inputs are learnt at one pace, not the large ones first. The input factor of
    K-FAC (arXiv 1503.05671) at the start of the write, with Adam (as SOAP, arXiv 2409.11321, has it
    in the basis of the gradients) on top. Raises ConfigError when no adapter has bases.
    """
    if not any(state.groups_N):
        raise ConfigError(
            "optimizer 'whitened' has no bases to move in; give it some with `whiten`."
        )

    def in_bases(values_NP: Tensor) -> Tensor:
        for values_P, groups in zip(values_NP, state.groups_N, strict=True):
            for group in groups:
                group.apply(values_P)
        return values_NP

    return in_bases(adamw(flat, in_bases(grad_NP), state))


def muon(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
    """Momentum of every A and B with equal singular values, at the size of an Adam step.

    Quintic Newton–Schulz in float32 (K. Jordan, 2024), scaled by 0.2 sqrt(width of the layer), so
    that rates that suit AdamW suit it (Moonlight, arXiv 2502.16982, has the larger side).
    """
    velocity = state.first_NP
    velocity.mul_(1 - (1 - MUON_MOMENTUM) * state.live_N1).add_(grad_NP * state.live_N1)
    update = torch.empty_like(grad_NP)
    for i, (span, shape) in enumerate(flat.spans):
        heavy = grad_NP[:, span] + MUON_MOMENTUM * velocity[:, span]
        even = orthogonalised(heavy.unflatten(1, shape))
        wide = shape[1] if i % 2 == 0 else shape[0]  # of A and of B; not the rank, which is padded
        update[:, span] = (0.2 * wide**0.5 * even).flatten(1)
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
