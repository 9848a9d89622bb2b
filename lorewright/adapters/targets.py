"""Which linear layers of a model's text decoder carry an adapter, and why others cannot.

    sites, skipped = survey(model)          coverage = resolve_targets(model, ("attention",), None)

Parts of a model are recognised by the spellings of dotted names in the model families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from lorewright.errors import AdapterError, ConfigError, ModelError, TargetsNotFound

# Parts of dotted names, in the spellings of the model families.
ATTENTION = ("attn", "attention")
MLP = ("mlp", "feed_forward", "ffn", "moe", "expert", "fc1", "fc2")
DOWN = ("down_proj", "fc2", "dense_4h_to_h")
CROSS_ATTENTION = ("cross_attn", "crossattention", "encoder_attn", "encdecattention")
TOWERS = ("vision", "visual", "audio", "image", "speech", "multi_modal", "mm_proj", "perceiver")
ROUTERS = ("gate", "router", "shared_expert_gate", "router_proj")
HEADS = ("lm_head", "embed_out", "output_projection", "score")


@dataclass(frozen=True)
class Site:
    """One linear layer of the text decoder that can carry an adapter."""

    name: str
    layer: int
    projection: str
    n_in: int
    n_out: int


@dataclass(frozen=True)
class Coverage:
    """The layers that carry an adapter, and what cannot carry one, with the reason."""

    sites: tuple[Site, ...]
    n_linear: int
    skipped: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Full dotted names of the adapted modules, in model order."""
        return tuple(site.name for site in self.sites)

    def table(self) -> list[tuple[str, int, str]]:
        """Rows (what, number of modules, which layers or why not), adapted ones first."""
        layers: dict[str, list[int]] = {}
        for site in self.sites:
            layers.setdefault(site.projection, []).append(site.layer)
        rows = [(what, len(at), f"layers {_ranges(at)}") for what, at in layers.items()]
        whys = list(self.skipped.values())
        return rows + [("skipped", whys.count(why), why) for why in dict.fromkeys(whys)]


def resolve_targets(
    model: nn.Module, targets: Sequence[str], layers: Sequence[int] | None = None
) -> Coverage:
    """Find the linear layers of the text decoder that `targets` name, in `layers` (None = all).

    Raises TargetsNotFound for each target that names nothing, or only what cannot carry an adapter
    (another tower, the head, a router, a Conv1D), and ConfigError for layers that do not exist.
    """
    sites, skipped = survey(model)
    wanted = f"targets {list(targets)}"
    if not sites:
        others = ", ".join(dict.fromkeys(skipped.values())) or "no weights"
        raise TargetsNotFound(f"{wanted} need nn.Linear layers; the decoder has only: {others}.")
    depth = 1 + max(site.layer for site in sites)
    absent = [layer for layer in layers or () if layer >= depth]
    if absent:
        raise ConfigError(f"layers {absent} do not exist; the text decoder has 0 to {depth - 1}.")
    chosen: set[Site] = set()
    for target in targets:
        matched = {site for site in sites if _matches(target, site)}
        if not matched:
            raise TargetsNotFound(f"{wanted}: {_explain_no_match(target, sites, skipped)}")
        inside = {site for site in matched if layers is None or site.layer in layers}
        if not inside:
            there = _ranges([site.layer for site in matched])
            raise TargetsNotFound(
                f"{wanted}: {target!r} is in layers {there}, not in {list(layers or ())}."
            )
        chosen |= inside
    return Coverage(tuple(site for site in sites if site in chosen), len(sites), skipped)


def survey(model: nn.Module) -> tuple[tuple[Site, ...], dict[str, str]]:
    """List the layers that can carry an adapter and, by name, why others cannot.

    The same with a stack attached. Raises AdapterError if another library's adapters are there.
    """
    decoder = text_decoder(model)
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    head = model.get_output_embeddings() if isinstance(model, _Language) else None
    sites: list[Site] = []
    skipped: dict[str, str] = {}
    inside = "\0"
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if name.endswith((".base_layer", ".lora_A")):
            raise AdapterError(f"{name!r}: another library's adapters are attached; unload them.")
        if isinstance(module, Adapted):
            inside, module = name + ".", module.base
        parts = name.removeprefix(prefix).lstrip(".").split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if module is head and isinstance(module, nn.Linear):
            skipped[name] = "the output head"
        elif prefix and not name.startswith(prefix + ".") and isinstance(module, nn.Linear):
            skipped[name] = "outside the text decoder"
        elif why := _why_not(module, name.split(".")):
            skipped[name] = why
        elif isinstance(module, nn.Linear) and at is None:
            skipped[name] = "outside the numbered layers"
        elif isinstance(module, nn.Linear) and at is not None:
            place = int(parts[at]), ".".join(parts[at + 1 :]) or parts[at]
            sites.append(Site(name, *place, module.in_features, module.out_features))
    return tuple(sites), skipped


def named(model: nn.Module, spellings: Sequence[str]) -> tuple[str, ...]:
    """Those of some spellings that occur in the decoder; the first where none does.

    `resolve_targets` then says that it is not there.
    """
    there = {site.projection.split(".")[-1] for site in survey(model)[0]}
    return tuple(name for name in spellings if name in there) or tuple(spellings[:1])


def sites_named(model: nn.Module, spellings: Sequence[str]) -> tuple[Site, ...]:
    """The layers that `named` spellings name, by one look at the network.

    Raises TargetsNotFound where no spelling occurs.
    """
    sites = tuple(each for each in survey(model)[0] if each.projection.split(".")[-1] in spellings)
    return sites or resolve_targets(model, spellings[:1]).sites


def text_decoder(model: nn.Module) -> nn.Module:
    """Return the part of the model that writes text; the model itself if it does not say."""
    while isinstance(model, _Language):
        inner = model.get_decoder()
        if inner is model or not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def layer_list(model: nn.Module) -> nn.ModuleList:
    """The decoder's numbered layers. Raises ModelError when they are not one list."""
    sites, _ = survey(model)
    lists = [
        site.name.removesuffix(site.projection).rstrip(".").rpartition(".")[0] for site in sites
    ]
    prefixes = list(dict.fromkeys(lists))
    layers = model.get_submodule(prefixes[0]) if len(prefixes) == 1 else None
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"the decoder has {len(prefixes)} lists of layers ({', '.join(prefixes[:3])}); it can "
            "be run as a whole only: write with trunk off."
        )
    return layers


class Adapted(nn.Module):
    """A module that carries an adapter; `base` is the linear layer it had been."""

    base: nn.Linear

    @property
    def weight(self) -> Tensor:
        """The frozen weight (O, I): model code reads its dtype and device."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (O), if there is one."""
        return self.base.bias


@runtime_checkable
class _Language(Protocol):
    def get_decoder(self) -> nn.Module | None: ...

    def get_output_embeddings(self) -> nn.Module | None: ...


def _why_not(module: nn.Module, parts: Sequence[str]) -> str | None:
    """Say why a module with weights cannot carry an adapter; None if it can, or has none."""
    if isinstance(module, nn.Embedding):
        return "an embedding"
    if type(module).__name__ == "Conv1D":
        return "a Conv1D (its weight is transposed), not torch.nn.Linear"
    if not isinstance(module, nn.Linear):
        fused = parts[-1] == "experts" and any(True for _ in module.parameters(recurse=False))
        return "fused expert weights, not torch.nn.Linear" if fused else None
    if _any_in(TOWERS, parts):
        return "outside the text decoder"
    if _any_in(CROSS_ATTENTION, parts):
        return "cross-attention to another tower"
    if parts[-1] in HEADS:
        return "the output head"
    return "a router" if parts[-1] in ROUTERS else None


def _any_in(words: Sequence[str], parts: Sequence[str]) -> bool:
    return any(word in part for part in parts for word in words)


def _attends(site: Site) -> bool:
    return _any_in(ATTENTION, site.projection.split("."))


PRESETS: dict[str, Callable[[Site], bool]] = {
    "all-linear": lambda site: True,
    "attention": _attends,
    "mlp": lambda site: not _attends(site) and _any_in(MLP, site.projection.split(".")),
}
"""Targets that are no names of modules, and which layers they mean."""


def _matches(target: str, site: Site) -> bool:
    if target in PRESETS:
        return PRESETS[target](site)
    return f".{site.name}".endswith(f".{target}")


def _explain_no_match(target: str, sites: Sequence[Site], skipped: Mapping[str, str]) -> str:
    start = f"{target!r} matched 0 of {len(sites)} linear layers in the text decoder"
    elsewhere = [name for name in skipped if f".{name}".endswith(f".{target}")]
    if elsewhere:
        other = f"{len(elsewhere)} other module(s), first {elsewhere[0]!r}"
        return f"{start}, but {other}, which cannot carry adapters: {skipped[elsewhere[0]]}."
    names = {site.projection.split(".")[-1]: site.projection for site in sites}
    names |= {site.projection: site.projection for site in sites}
    near = get_close_matches(target, list(names), n=3, cutoff=0.3) or list(names)[:3]
    closest = ", ".join(repr(name) for name in dict.fromkeys(names[name] for name in near))
    return f"{start} (closest: {closest}); name one of these or a preset ({', '.join(PRESETS)})."


def _ranges(numbers: Sequence[int]) -> str:
    runs = groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in run] for _, run in runs]
    return ",".join(str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)
