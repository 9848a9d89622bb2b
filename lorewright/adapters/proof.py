"""That an adapter fits a model, is bound in it and does something: checked before it counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lorewright.adapters.adapter import (
    HALVES,
    PARTS,
    Adapter,
    binds,
    check_tensors,
    module_names,
)
from lorewright.adapters.lora import MAGNITUDE, check_keys
from lorewright.adapters.targets import resolve_targets, survey
from lorewright.errors import AdapterError, LorewrightError, NoEffect, WrongBase


@dataclass(frozen=True)
class Proof:
    """Evidence that an adapter is bound and does something."""

    n_tensors: int
    delta_norms: Mapping[str, float]
    """Frobenius norm of scale * B A per module."""
    moved: float
    """Largest absolute change of any logit."""


def validate(adapter: Adapter, model: nn.Module, base_digest: str | None = None) -> None:
    """Check, both ways, that the adapter's tensors and the model's modules fit.

    Every tensor belongs to a linear layer of the text decoder and has its shape; every module that
    the configuration names has its tensors. Works the same with a stack attached.
    Raises WrongBase when both digests are known and differ, AdapterError otherwise.
    """
    if base_digest and adapter.base_digest and base_digest != adapter.base_digest:
        raise WrongBase(
            f"the adapter was written on {adapter.base_id!r} (digest {adapter.base_digest[:12]}); "
            f"this base has digest {base_digest[:12]}. Load that base, or write the memory again."
        )
    check_tensors(adapter.tensors, adapter.config, "the adapter")
    listed, skipped = survey(model)
    sites = {site.name: site for site in listed}
    strange = [name for name in adapter.modules if name not in sites]
    if strange:
        why = skipped.get(strange[0], "the model has no such layer")
        raise AdapterError(
            f"{len(strange)} of the adapter's {len(adapter.modules)} modules cannot be bound, the "
            f"first is {strange[0]!r}: {why}. It names {adapter.base_id!r} as its base: load that, "
            "or where it is this one, rename the tensors to its layers, such as "
            f"{next(iter(sites))!r}."
        )
    for name in adapter.modules:
        A_RI, B_OR = (adapter.tensors[name + half] for half in HALVES)
        fits, has = (sites[name].n_in, sites[name].n_out), (A_RI.shape[1], B_OR.shape[0])
        if fits != has or len(adapter.tensors.get(name + MAGNITUDE, B_OR)) != fits[1]:
            raise AdapterError(
                f"{name!r} is {fits} (in, out) in the model, {has} in the adapter; load the model "
                f"it was written on ({adapter.base_id!r})."
            )
    try:
        named = resolve_targets(model, adapter.config.targets, adapter.config.layers).names
    except LorewrightError as error:
        raise AdapterError(f"the adapter's own targets do not fit the model: {error}") from error
    parts = PARTS[adapter.config.variant]
    named_keys = dict.fromkeys(name + part for name in named for part in parts)
    check_keys("the layers that its targets name", named_keys, "the tensors", adapter.tensors)
    layers = adapter.config.layers
    bound = [n for n in module_names(model) if binds(adapter.target_modules, layers, n)]
    bare = sorted(set(bound) - set(adapter.modules))
    if bare:
        raise AdapterError(
            f"target_modules bind {len(bare)} modules without tensors, the first is {bare[0]!r}; "
            "PEFT would leave them untrained. Save the adapter from its own model."
        )


def delta_norms(adapter: Adapter) -> dict[str, float]:
    """Frobenius norm of scale * B A per module, in float64, from R x R products only."""
    norms = {}
    for name in adapter.modules:
        A_RI, B_OR = (adapter.tensors[name + half].detach().double().cpu() for half in HALVES)
        # |BA|^2 = tr(A^T B^T B A) = <B^T B, A A^T>; rounding may leave it a little below zero
        square = ((B_OR.T @ B_OR) * (A_RI @ A_RI.T)).sum().clamp(min=0)
        norms[name] = adapter.config.scale * math.sqrt(square.item())
    return norms


def check_effect(adapter: Adapter) -> dict[str, float]:
    """The norms of all weight changes; raise NoEffect where every one of them is zero.

    Some may be: PEFT saves modules that no gradient reaches, where layers share keys and values.
    """
    norms = delta_norms(adapter)
    if not any(norm > 0 for norm in norms.values()):
        raise NoEffect(
            f"{len(norms)} of {len(norms)} modules have a weight change of zero; the adapter was "
            "not trained. Train it, and save it afterwards."
        )
    return norms


def unchanged(adapter: Adapter) -> list[str]:
    """The modules whose weight change is zero."""
    return [name for name, norm in delta_norms(adapter).items() if not norm > 0]


def prove(
    adapter: Adapter,
    model: nn.Module,
    *,
    base: Callable[[], Tensor],
    adapted: Callable[[], Tensor],
    base_digest: str | None = None,
) -> Proof:
    """Show that every tensor is bound, some weight change is not zero and the logits moved.

    `base` and `adapted` return logits of the same tokens without and with the adapter.
    Raises AdapterError from `validate`, NoEffect when nothing changes.
    """
    validate(adapter, model, base_digest)
    norms = check_effect(adapter)
    moved = (adapted().detach().float() - base().detach().float()).abs().max().item()
    if not moved > 0:
        raise NoEffect(
            f"all {len(norms)} modules are bound, but no logit moved (largest change {moved}); "
            "the adapter is not active in the model that answered."
        )
    return Proof(len(adapter.tensors), norms, moved)
