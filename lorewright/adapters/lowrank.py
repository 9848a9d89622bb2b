"""A weight change as the product of two thin factors, and the best of a rank.

Knows matrices; knows nothing of adapters on disk or of how a change came about.

Shape letters: K rank of factors, R rank, I in-features, O out-features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ENOUGH = 1e-4
"""Of the largest squared singular value: above it float32 tells the vectors of a Gram matrix from
its rounding, which is of the order of 1e-7."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A weight change as a product B_OR @ A_RI, scale and weight folded into B.

    In float64, but for what a text leaves in float32.
    """

    B_OR: Tensor
    A_RI: Tensor
    share: float = 1.0
    """Share of the squared Frobenius norm that these factors still have, in [0, 1]."""


def truncate(change: Factors | Tensor, rank: int) -> Factors:
    """Return the best approximation of at most this rank in the Frobenius norm (Eckart–Young).

    Factors B (O, K), A (K, I) go through the core: QR of both sides, SVD of the K x K product of
    the triangles, O((O + I) K² + K³) in all. A dense delta_OI goes through the eigenvectors of its
    smaller Gram matrix in float64: cheaper than its SVD, and at 1e-8 of the largest singular value
    finer than the float32 of adapters. B and A get equal shares of the singular
    values. Zero stays zero with share 1.

    Paper: the core is that of Core Space merging, arXiv 2509.17786.
    """
    return decomposed(change, rank)[0]


def decomposed(change: Factors | Tensor, rank: int) -> tuple[Factors, list[float]]:
    """What `truncate` and `energies` give, by one decomposition.

    A dense change in float32 stays in it where that is enough for its first singular vectors.
    """
    if isinstance(change, Factors):
        U_OR, sigma_R, V_IR = core_svd(change)
        square_R, before = sigma_R.square(), change.share
    else:
        flat = change.shape[0] <= change.shape[1]
        wide = change if flat else change.T
        square_R, vectors = torch.linalg.eigh(wide @ wide.T)
        if change.dtype == torch.float32 and square_R[-rank:][0] < ENOUGH * square_R[-1]:
            wide = wide.double()
            square_R, vectors = torch.linalg.eigh(wide @ wide.T)
        square_R, vectors = square_R.flip(0).clamp(min=0), vectors.flip(1)[:, :rank]
        other = wide.T @ vectors
        sigma_R, before = other.norm(dim=0), 1.0
        other = other / torch.where(sigma_R > 0, sigma_R, 1.0)
        U_OR, V_IR = (vectors, other) if flat else (other, vectors)
    shares = _shares(square_R)
    share = shares[min(rank, len(shares)) - 1] if square_R.any() else 1.0
    root_R = sigma_R[:rank].sqrt()
    halved = Factors(U_OR[:, :rank] * root_R, root_R[:, None] * V_IR[:, :rank].T, before * share)
    return halved, shares


def core_svd(change: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors (O, K), values (K) and vectors (I, K) of B A, from thin factors only."""
    Q_OR, left_RR = torch.linalg.qr(change.B_OR)
    Q_IR, right_RR = torch.linalg.qr(change.A_RI.T)
    U_RR, sigma_R, Vh_RR = torch.linalg.svd(left_RR @ right_RR.T, full_matrices=False)
    return Q_OR @ U_RR, sigma_R, Q_IR @ Vh_RR.T


def halves(change: Factors, rank: int) -> tuple[Tensor, Tensor]:
    """A (R, I) and B (O, R) of an adapter of this rank in float32, padded with zeros."""
    more = rank - len(change.A_RI)
    A_RI = torch.nn.functional.pad(change.A_RI, (0, 0, 0, more)).float()
    return A_RI, torch.nn.functional.pad(change.B_OR, (0, more)).float()


def energies(change: Factors | Tensor) -> list[float]:
    """The share of a change's squared Frobenius norm that its best rank 1, 2, … holds.

    A dense change goes through the eigenvalues of its smaller Gram matrix, as in `truncate`.
    """
    if isinstance(change, Factors):
        left_RR, right_RR = (
            torch.linalg.qr(half, mode="r")[1] for half in (change.B_OR, change.A_RI.T)
        )
        square_R = torch.linalg.svdvals(left_RR @ right_RR.T).square()
    else:
        wide = change if change.shape[0] <= change.shape[1] else change.T
        square_R = torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp(min=0)
    return _shares(square_R)


def _shares(square_R: Tensor) -> list[float]:
    """Of the squared norm what the largest 1, 2, … squared singular values hold."""
    total = square_R.sum().clamp(min=torch.finfo(square_R.dtype).tiny)
    shares: list[float] = (square_R.cumsum(0) / total).clamp(max=1.0).tolist()
    return shares
