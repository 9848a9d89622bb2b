"""Many adapters to one: exact algebra on the weight change, never on the factors apart.

    ΔW_n = w_n * scale_n * B_n A_n       ΔW = method(ΔW_1 ... ΔW_N)       saved with alpha = rank

Averaging A and B apart adds N² - N cross terms and depends on the gauge: (B G⁻¹, G A) is the same
ΔW and would merge to another. A weight is a factor on ΔW in every method: negative ones negate, and
a paper's lambda is a common factor. A module that an adapter does not cover has ΔW = 0. Ranks,
alphas and rsLoRA may be mixed. Linear methods, `tsv` and `regmean` never form ΔW and need at most
the sum of the ranks; the others form it one module at a time and are truncated to that.

PEFT's `add_weighted_adapter`: `cat` and `svd` are ours. `linear`, `ties`, `dare_*` and
`magnitude_prune` act on A and B apart there; the same names with `_svd` act on ΔW. It leaves
use_rslora set on the result, which multiplies that by sqrt(rank), and takes `linear` for a single
adapter in every case. mergekit merges dense checkpoints; see each method.

This module knows adapters in memory; whether a merged memory still recalls its facts is for the
caller to measure.

Shape letters: N adapters, R rank, I in-features, O out-features.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorewright.adapters.adapter import HALVES, Adapter, content_id, needs_plain
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lowrank import Factors, core_svd, halves, truncate
from lorewright.adapters.proof import delta_norms
from lorewright.errors import AdapterError, ConfigError, WrongBase

ROUNDING = 1e-6  # of the largest singular value; below it float32 adapters hold nothing


@dataclass(frozen=True, eq=False)
class Parts:
    """One module in all adapters that cover it: the input of a combination."""

    module: str
    factors: tuple[Factors, ...]
    """One weight change per covering adapter, its weight included."""
    index: tuple[int, ...]
    """Position of each covering adapter among all N."""
    n_adapters: int
    """N, with those that do not cover the module."""
    rank: int | None
    """The rank that is wanted; None = the sum of the ranks."""

    @property
    def total_rank(self) -> int:
        """Sum of the ranks: at this rank every linear combination is exact."""
        return sum(len(each.A_RI) for each in self.factors)

    def stacked(self) -> Factors:
        """The sum of all weight changes, exactly: B side by side, A on top of one another."""
        B_OR = torch.cat([each.B_OR for each in self.factors], dim=1)
        return Factors(B_OR, torch.cat([each.A_RI for each in self.factors]))

    def deltas(self) -> Tensor:
        """The weight changes themselves, (N, O, I) for the N that cover the module."""
        return torch.stack([each.B_OR @ each.A_RI for each in self.factors])


Grams = Sequence[Mapping[str, Tensor]]
"""Per adapter: module name -> XᵀX (I, I) of that module's inputs."""
Combination = Callable[..., Factors | Tensor]
"""(parts, **options) -> the merged weight change: as factors, or dense as delta_OI."""


@dataclass(frozen=True)
class Merged:
    """One adapter made of several, and what the making has cost."""

    adapter: Adapter
    """A plain adapter: alpha = rank (scale 1), float32, the same rank in every module."""
    shares: Mapping[str, float]
    """Share of the squared Frobenius norm of the merged ΔW that its rank can hold, by module."""
    notes: tuple[str, ...]
    """What was assumed, left out or came out as zero; sentences."""

    @property
    def share(self) -> float:
        """The smallest share of any module: 1.0 = the rank cost nothing."""
        return min(self.shares.values())


def merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    method: str | Combination = "cat",
    rank: int | None = None,
    **options: Any,
) -> Merged:
    """Merge adapters of one base into one plain adapter, on ΔW.

    `weights` are factors on each ΔW (default 1); `method` is a key of COMBINATIONS or a function
    like those in it, and `options` are its keyword arguments. `rank` None = the sum of the ranks
    that cover a module, at its largest; more pads with zeros, less truncates to the best of that
    rank (`cat` refuses). One adapter at weight 1 keeps its ΔW, unless a density below 1 trims or
    drops from it. Content ids of the inputs, weights and settings go into the card.

    Raises ConfigError for an unknown method, option, weight or rank and for no adapters, WrongBase
    when known base digests or shapes differ, AdapterError for tensors that are no adapter's.
    """
    if not adapters:
        raise ConfigError("merge needs at least one adapter; there is none.")
    needs_plain(adapters, "merging")
    combine = COMBINATIONS.get(method) if isinstance(method, str) else method
    if combine is None:
        raise ConfigError(
            f"there is no method {method!r}; choose one of {', '.join(COMBINATIONS)}."
        )
    check_options(combine, options)
    own_weights = checked_weights(len(adapters), weights)
    check_rank(rank)
    notes = _check_bases(adapters)
    changes: dict[str, Factors] = {}
    for module in dict.fromkeys(name for adapter in adapters for name in adapter.modules):
        parts = _parts(module, adapters, own_weights, rank)
        change = combine(parts, **options)
        limit = rank or parts.total_rank
        if isinstance(change, Tensor) or len(change.A_RI) > limit:
            change = truncate(change, limit)
        changes[module] = change
    covers = [set(adapter.modules) for adapter in adapters]
    if partial := sum(not all(name in cover for cover in covers) for name in changes):
        notes.append(f"{partial} of {len(changes)} modules are not in every adapter.")
    width = rank or max(len(each.A_RI) for each in changes.values())
    merged = _assembled(adapters, changes, width)
    record = {
        "method": method if isinstance(method, str) else method.__name__,
        "weights": own_weights,
        "rank": merged.config.rank,
        "options": {k: v for k, v in options.items() if isinstance(v, int | float | str)},
        "sources": [content_id(adapter) for adapter in adapters],
        "kept": min(change.share for change in changes.values()),
    }
    merged = replace(merged, card={"merge": record})
    sizes = [(abs(w), delta_norms(each)) for w, each in zip(own_weights, adapters, strict=True)]
    noise = {name: ROUNDING * sum(w * by.get(name, 0.0) for w, by in sizes) for name in changes}
    if dead := [name for name, norm in delta_norms(merged).items() if not norm > noise[name]]:
        notes.append(f"{len(dead)} of {len(changes)} modules change nothing, such as {dead[0]!r}.")
    return Merged(merged, {name: change.share for name, change in changes.items()}, tuple(notes))


def cat(parts: Parts) -> Factors:
    """Sum of w_n ΔW_n by concatenation: exact, at the sum of the ranks.

    Raises ConfigError for a smaller rank; `svd` is the same sum at any rank. PEFT's
    `cat` is the same ΔW; its rank counts adapters that do not cover the module too.
    """
    if parts.rank is not None and parts.rank < parts.total_rank:
        raise ConfigError(
            f"cat is exact and needs rank {parts.total_rank} for {parts.module!r}, not "
            f"{parts.rank}; leave rank out, or use method 'svd'."
        )
    return parts.stacked()


def task_arithmetic(parts: Parts, *, scaling: float = 1.0) -> Factors:
    """Sum of w_n ΔW_n times `scaling`; weights below zero unlearn.

    Exact unless the rank is below the sum of the ranks. mergekit's `task_arithmetic` is the
    same on dense checkpoints, PEFT's `linear` is not.

    Paper: arXiv 2212.04089, where a coefficient of 0.3 to 1 is tuned on held-out data.
    """
    if not math.isfinite(scaling):
        raise ConfigError(f"scaling must be a finite number; it is {scaling!r}.")
    total = parts.stacked()
    return replace(total, B_OR=scaling * total.B_OR)


def mean(parts: Parts) -> Factors:
    """Sum of w_n ΔW_n divided by N, the adapters that do not cover the module included.

    mergekit's `linear` divides by the sum of the weights. Disjoint memories keep 1/N of themselves.
    """
    return task_arithmetic(parts, scaling=1 / parts.n_adapters)


def svd(parts: Parts) -> Factors:
    """Sum of w_n ΔW_n as singular triplets: the best adapter of the rank.

    PEFT's `svd` is the same ΔW by way of the dense SVD; its default rank is the largest of the
    ranks, which loses much of disjoint memories, ours their sum, which loses nothing.
    """
    return truncate(parts.stacked(), parts.rank or parts.total_rank)


def tsv(parts: Parts) -> Factors:
    """Task singular vectors: the adapters' singular vectors made orthogonal, with their own values.

    ΔW = U diag(σ) Vᵀ with U = polar([U_1 | ... | U_N]), V alike, σ the |w_n| σ_n side by side. At a
    given rank each adapter of a module has its first rank // N triplets; `share` is theirs of
    Σ ‖w_n ΔW_n‖². Polar factors commute with the QR of stacked factors, so the method in the core
    space and the one on dense matrices are the same. Raises ConfigError for a rank below N.

    Papers: TSV-M, arXiv 2412.00081; in the core, arXiv 2509.17786. Departures: the paper keeps 1/N
    of min(O, I) vectors, where an adapter's own rank is such a share already; directions that are
    rounding get no arbitrary vectors, so copies of one adapter merge to itself. PEFT has none.
    """
    share = None if parts.rank is None else parts.rank // len(parts.factors)
    if share == 0:
        raise ConfigError(
            f"tsv needs rank {len(parts.factors)}, one per adapter, not {parts.rank}."
        )
    left, values, right, before = [], [], [], 0.0
    for each in parts.factors:
        U_OR, sigma_R, V_IR = core_svd(each)
        before += sigma_R.square().sum().item()
        n_solid = int((sigma_R > ROUNDING * sigma_R.max()).sum())
        keep = slice(n_solid if share is None else min(share, n_solid))
        left.append(U_OR[:, keep])
        values.append(sigma_R[keep])
        right.append(V_IR[:, keep])
    sigma_R = torch.cat(values)
    if not len(sigma_R):
        return truncate(parts.stacked(), 1)  # zero, and nothing to make orthogonal
    held = min(1.0, sigma_R.square().sum().item() / before)
    U_OR, V_IR = (_polar(torch.cat(side, dim=1)) for side in (left, right))
    return Factors(U_OR * sigma_R, V_IR.T, held)


def _polar(vectors_DR: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, over the directions that are no rounding."""
    X_DR, sigma_R, Yh_RR = torch.linalg.svd(vectors_DR, full_matrices=False)
    solid_R = sigma_R > ROUNDING * sigma_R.max()
    return X_DR[:, solid_R] @ Yh_RR[solid_R]


def regmean(parts: Parts, *, grams: Grams, ridge: float = 1e-2, shrink: float = 0.0) -> Factors:
    """The ΔW whose outputs, on each adapter's own inputs, are nearest to that adapter's outputs.

    With X_nᵀX_n from `grams`, τ_n the mean of its diagonal and H_n = X_nᵀX_n + ridge τ_n 1,
    the minimum of
        Σ_n ‖X_n (ΔW - w_n ΔW_n)ᵀ‖² + ridge τ_n ‖ΔW - w_n ΔW_n‖² + shrink τ_n ‖ΔW‖²
    is (Σ w_n ΔW_n H_n)(Σ H_n + shrink τ_n 1)⁻¹. `ridge` pulls directions without inputs to the
    mean, `shrink` to zero (then one adapter is not the identity). The columns are those of the B_n,
    so the sum of the ranks holds it exactly. An adapter that does not cover the module takes part
    with ΔW_n = 0 if it has a Gram matrix there, and is left out if not.

    Raises ConfigError for Gram matrices that are missing, singular or do not fit.
    Paper: RegMean, arXiv 2212.09849; it multiplies off-diagonals by 0.9 where we add a ridge.
    """
    if min(ridge, shrink) < 0 or not math.isfinite(ridge + shrink):
        raise ConfigError(f"ridge and shrink must be finite and >= 0; they are {ridge}, {shrink}.")
    if len(grams) != parts.n_adapters:
        raise ConfigError(f"grams must be {parts.n_adapters} mappings, not {len(grams)}.")
    n_in = parts.factors[0].A_RI.shape[1]
    own = dict(zip(parts.index, parts.factors, strict=True))
    left_II, right, level = torch.zeros(n_in, n_in, dtype=torch.float64), [], 0.0
    for n, stored in enumerate(grams):
        if parts.module not in stored and n not in own:
            continue
        H_II = _checked_gram(stored, parts.module, n, n_in)
        tau = H_II.diagonal().mean().item()
        H_II.diagonal().add_(ridge * tau)
        level += tau
        left_II += H_II
        if n in own:
            right.append(own[n].A_RI @ H_II)
    left_II.diagonal().add_(shrink * level)
    lower_II, failed = torch.linalg.cholesky_ex(left_II)
    pivot = lower_II.diagonal().square()
    if failed.item() or not pivot.min() > 1e-12 * pivot.max():
        raise ConfigError(
            f"the Gram matrices of {parts.module!r} are singular, from too few inputs, with ridge "
            f"{ridge}; give a ridge above zero."
        )
    A_RI = torch.cholesky_solve(torch.cat(right).T, lower_II).T
    return replace(parts.stacked(), A_RI=A_RI)


def _checked_gram(stored: Mapping[str, Tensor], module: str, n: int, n_in: int) -> Tensor:
    """A float64 copy of one Gram matrix, or ConfigError saying what is wrong with it."""
    shape = tuple(stored[module].shape) if module in stored else None
    if shape != (n_in, n_in):
        raise ConfigError(f"grams[{n}][{module!r}] must be ({n_in}, {n_in}); it is {shape}.")
    gram_II = stored[module].detach().to("cpu", torch.float64, copy=True)
    uneven = (gram_II - gram_II.T).abs().max()
    # written so that NaN fails as well
    if not (uneven <= 1e-4 * gram_II.abs().max() and gram_II.diagonal().min() >= 0):
        raise ConfigError(f"grams[{n}][{module!r}] must be symmetric and finite, as XᵀX is.")
    return gram_II


def ties(parts: Parts, *, density: float = 0.5) -> Tensor:
    """Trim, elect, merge: the mean of the large entries that agree with the sign of their sum.

    Every w_n ΔW_n keeps its `density` largest entries; each place takes the sign of the sum over n,
    and the mean over the non-zero entries that have it.

    Paper: TIES-Merging, arXiv 2306.01708 (density 0.2, then lambda). Departure: trimming is per
    matrix, as in PEFT and mergekit, not over the whole model. Both of them read a sum of exactly
    zero as positive; here nothing is elected, and ΔW and -ΔW cancel. PEFT's `ties_svd` elects
    before it weighs; mergekit's `normalize` divides by the agreeing weights, not their number.
    """
    return _elected_mean(_trimmed(parts, density))


def dare(parts: Parts, *, density: float = 0.5, seed: int = 0) -> Tensor:
    """Drop and rescale: the sum of w_n ΔW_n times a random mask of `density` ones, over density.

    Unbiased: over seeds the mean is the plain sum. Masks depend on seed, module and the adapter's
    place in the list, so another order is another draw.

    Paper: DARE, arXiv 2311.03099 (density 0.1 to 0.5). PEFT's `dare_linear_svd` is this, drawn from
    the global generator.
    """
    return _dropped(parts, density, seed).sum(dim=0)


def dare_ties(parts: Parts, *, density: float = 0.5, seed: int = 0) -> Tensor:
    """Drop and rescale as in `dare`, then elect and merge as in `ties` without trimming; biased.

    PEFT's `dare_ties_svd` and mergekit's `dare_ties` differ as their TIES does from `ties`.
    """
    return _elected_mean(_dropped(parts, density, seed))


def magnitude_prune(parts: Parts, *, density: float = 0.5) -> Tensor:
    """Sum of the `density` largest entries of each w_n ΔW_n; PEFT's `magnitude_prune_svd`."""
    return _trimmed(parts, density).sum(dim=0)


def _trimmed(parts: Parts, density: float) -> Tensor:
    """Weight changes (N, O, I) with all but their largest entries zero; at least one stays."""
    delta_NOI = parts.deltas()
    delta_NE = delta_NOI.flatten(1)
    n_kept = max(1, round(_checked(density) * delta_NE.shape[1]))
    at = delta_NE.abs().topk(n_kept, sorted=False).indices
    return torch.zeros_like(delta_NE).scatter(1, at, delta_NE.gather(1, at)).view_as(delta_NOI)


def _dropped(parts: Parts, density: float, seed: int) -> Tensor:
    """Weight changes (N, O, I) with all but a random share of their entries zero, rescaled."""
    delta_NOI = parts.deltas() / _checked(density)
    for n, delta_OI in zip(parts.index, delta_NOI, strict=True):
        mixed = zlib.crc32(f"{seed} {n} {parts.module}".encode())
        generator = torch.Generator().manual_seed(mixed)
        delta_OI *= torch.rand(delta_OI.shape, generator=generator) < density
    return delta_NOI


def _checked(density: float) -> float:
    if not 0 < density <= 1:  # NaN fails as well
        raise ConfigError(f"density must be above 0 and at most 1; it is {density!r}.")
    return density


def _elected_mean(delta_NOI: Tensor) -> Tensor:
    """Mean over the entries that have the sign of their sum, zero where nothing has."""
    sign_OI = delta_NOI.sum(dim=0).sign()
    agree_NOI = (delta_NOI.sign() == sign_OI) & (sign_OI != 0)
    return (delta_NOI * agree_NOI).sum(dim=0) / agree_NOI.sum(dim=0).clamp(min=1)


# Checks and assembly


def check_options(method: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options that are no keywords of a method, or lack those it needs."""
    parameters = inspect.signature(method).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "progress"]
    needed = [p.name for p in keywords if p.default is p.empty]
    strange = sorted(options.keys() - {p.name for p in keywords})
    missing = [name for name in needed if name not in options]
    if strange or missing:
        names = [p.name for p in keywords]
        raise ConfigError(
            f"the method takes options {names}; unknown: {strange}, missing: {missing}."
        )


def checked_weights(n: int, weights: Sequence[float] | None) -> list[float]:
    """Factors on n weight changes, 1 by default. Raises ConfigError for others than n numbers."""
    factors = [1.0] * n if weights is None else list(weights)
    numbers = all(isinstance(w, int | float) and math.isfinite(w) for w in factors)
    if len(factors) != n or not numbers:
        raise ConfigError(f"weights must be {n} finite numbers; they are {factors}.")
    return [float(weight) for weight in factors]


def factors_of(adapter: Adapter) -> dict[str, Factors]:
    """An adapter's weight change in every module it covers, checked, in float64."""
    return {m: _parts(m, [adapter], [1.0], None).factors[0] for m in adapter.modules}


def check_rank(rank: int | None) -> None:
    """Raise ConfigError for anything but a positive integer or None."""
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ConfigError(f"rank must be an integer of at least 1, or None; it is {rank!r}.")


def _check_bases(adapters: Sequence[Adapter]) -> list[str]:
    """Raise WrongBase if two known digests differ; note the adapters without one."""
    digests = {a.base_digest: (n, a.base_id) for n, a in enumerate(adapters) if a.base_digest}
    if len(digests) > 1:
        (one, (n, of)), (other, (m, at)) = list(digests.items())[:2]
        raise WrongBase(
            f"adapter {n} was written on {of!r} (digest {one[:12]}), adapter {m} on {at!r} "
            f"(digest {other[:12]}); a merged adapter has one base. Merge those that share it."
        )
    silent = sum(not adapter.base_digest for adapter in adapters)
    ids = sorted({adapter.base_id for adapter in adapters})
    note = (
        f"{silent} of {len(adapters)} adapters lack the digest of their base; that it is the same "
        f"is assumed, from {ids}."
    )
    return [note] if silent else []


def _parts(
    module: str, adapters: Sequence[Adapter], weights: Sequence[float], rank: int | None
) -> Parts:
    """One module of every adapter that covers it, checked, in float64, scale and weight on B."""
    factors, index = [], []
    for n, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        keys = [module + half for half in HALVES]
        if not any(key in adapter.tensors for key in keys):
            continue
        pair = [adapter.tensors[key] for key in keys if key in adapter.tensors]
        r, sizes = adapter.config.rank, [tuple(tensor.shape) for tensor in pair]
        if [len(size) for size in sizes] != [2, 2] or {sizes[0][0], sizes[1][1]} != {r}:
            raise AdapterError(
                f"adapter {n}: {module!r} must have A ({r}, in) and B (out, {r}), not {sizes}; "
                "load the adapter again."
            )
        if not all(torch.isfinite(tensor).all() for tensor in pair):
            raise AdapterError(f"adapter {n}: {module!r} holds NaN or infinity; write it again.")
        A_RI, B_OR = (tensor.detach().to("cpu", torch.float64) for tensor in pair)
        factors.append(Factors(weight * adapter.config.scale * B_OR, A_RI))
        _check_range(factors[-1].B_OR, module)
        index.append(n)
    shapes = {(each.A_RI.shape[1], each.B_OR.shape[0]) for each in factors}
    if len(shapes) > 1:
        raise WrongBase(f"{module!r} has several shapes (in, out), {shapes}; the bases differ.")
    return Parts(module, tuple(factors), tuple(index), len(adapters), rank)


def _check_range(tensor: Tensor, module: str) -> None:
    if not torch.isfinite(tensor.float()).all():
        raise AdapterError(f"merging {module!r} left the range of float32; lower the weights.")


def _assembled(adapters: Sequence[Adapter], changes: Mapping[str, Factors], width: int) -> Adapter:
    """Pad every module to one rank and wrap it up under the widest adapter's target names."""
    tensors: dict[str, Tensor] = {}
    for module, change in changes.items():
        A_RI, B_OR = halves(change, width)
        _check_range(torch.cat([A_RI.flatten(), B_OR.flatten()]), module)
        tensors.update(zip((module + half for half in HALVES), (A_RI, B_OR), strict=True))
    base = next((each for each in adapters if each.base_digest), adapters[0])
    config, short = names_of(adapters, tuple(changes), width)
    return Adapter(config, tensors, base.base_id, base.base_digest, {}, short)


def names_of(
    adapters: Sequence[Adapter], modules: tuple[str, ...], rank: int
) -> tuple[LoraConfig, tuple[str, ...]]:
    """The settings of a merge on these modules, and PEFT's names for them.

    Both are those of an adapter that covers all of them, if one does.
    """
    for each in adapters:
        if set(each.modules) == set(modules):
            own = each.config
            return LoraConfig(rank, rank, own.targets, own.layers), each.target_modules
    return LoraConfig(rank, rank, modules), ()


COMBINATIONS: dict[str, Combination] = {
    "cat": cat,
    "mean": mean,
    "task_arithmetic": task_arithmetic,
    "svd": svd,
    "tsv": tsv,
    "regmean": regmean,
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
    "magnitude_prune": magnitude_prune,
}
