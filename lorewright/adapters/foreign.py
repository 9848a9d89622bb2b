"""Adapters as PEFT writes them elsewhere: which kinds are read, and how those become uniform.

Reads settings and tensors that are already in memory; knows nothing of files or models.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lorewright.errors import AdapterError, UnsupportedAdapter

A, B = ".lora_A.weight", ".lora_B.weight"
FOLDS = 10
"""A fraction of alpha with at most so many binary places is folded into B without rounding."""

# What an adapter of a kind that is not read would lose if A and B alone were taken from it.
LOST = {
    "peft_type": "all of it, for only LORA is read",
    "task_type": "a head that is no language model's",
    "bias": "the trained biases of the base's layers",
    "init_lora_weights": "the base's own weights, which this start of A and B changed",
    "modules_to_save": "the whole layers that were trained beside A and B",
    "lora_bias": "the biases of B",
    "trainable_token_indices": "the trained embeddings of single tokens",
    "target_parameters": "the matrices of parameters that belong to no linear layer",
    "layer_replication": "the repeated layers of its base",
    "fan_in_fan_out": "the orientation of layers with transposed weights (GPT-2's Conv1D)",
    "alora_invocation_tokens": "the tokens from which on it is active",
    **dict.fromkeys(
        ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "velora_config"),
        "a part of its computation",
    ),
    **dict.fromkeys(("arrow_config", "megatron_config"), "a part of its computation"),
}
READ: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    # the other initialisations change the base's weights as well
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def check_kind(settings: Mapping[str, Any], where: str) -> None:
    """Raise UnsupportedAdapter, naming what would be lost, unless A and B are all of it."""
    if not isinstance(settings.get("peft_type"), str):
        raise AdapterError(
            f"{where}: peft_type is {settings.get('peft_type')!r}, so this is no configuration of "
            "PEFT; copy the folder again."
        )
    for key, lost in LOST.items():
        value = settings.get(key)
        if value not in READ[key] if key in READ else value:
            raise _unsupported(f"{where}: {key} is {value!r}", lost)


def check_names(tensors: Mapping[str, Tensor], strange: list[str], where: str) -> None:
    """Raise for tensors that are no part of a linear layer's LoRA: `strange` of them."""
    if not strange and tensors:
        return
    listed = ", ".join(strange[:3])
    if strange and all(key.startswith("base_model.model.") for key in strange):
        whole = "the weights of whole layers, as are saved when the vocabulary was resized"
        lost = "the parts of embeddings and biases" if ".lora_" in listed else whole
        raise _unsupported(f"{where}: {len(strange)} of {len(tensors)} tensors are {listed}", lost)
    raise AdapterError(
        f"{where} must hold A and B of linear layers and no more; {len(strange)} of "
        f"{len(tensors)} tensors are not ({listed}). PEFT's names begin with base_model.model."
    )


def _unsupported(measured: str, lost: str) -> UnsupportedAdapter:
    return UnsupportedAdapter(
        f"{measured}. The folder is whole, but of a kind not read here: {lost} would be lost. "
        "Use it in PEFT, or train it again with A and B alone."
    )


def plain_names(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors without the adapter's name in their keys (`lora_A.default.weight`).

    Raises AdapterError where several adapters are in one file.
    """
    named = re.compile(r"\.(lora_[AB]|lora_magnitude_vector)\.([^.]+)\.(weight)$")
    every = {m[2] for key in tensors if (m := named.search(key))}
    if len(every) > 1:
        raise AdapterError(
            f"{where} holds {len(every)} adapters ({', '.join(sorted(every))}); save one of them."
        )

    def plain(key: str) -> str:
        return named.sub(
            lambda m: f".{m[1]}" + (".weight" if m[1] != "lora_magnitude_vector" else ""), key
        )

    return {plain(key): tensor for key, tensor in tensors.items()}


def uniform(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Any], dict[str, Tensor], tuple[str, ...]]:
    """Settings and tensors with one rank and a whole alpha, the same ΔW, and what that took.

    `rank_pattern`: A gets rows and B columns of zeros, which is exact. `alpha_pattern` and an alpha
    that is a fraction: the scales are folded into B, in float64; without rounding where they differ
    by powers of two. Patterns bind as in PEFT: the first that matches the end of a module's name.
    """
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    alpha = settings.get("lora_alpha")
    fraction = isinstance(alpha, float) and not alpha.is_integer()
    if not ranks and not alphas and not fraction:
        return dict(settings), dict(tensors), ()
    modules = [key.removesuffix(A) for key in tensors if key.endswith(A)]
    root = math.sqrt if settings.get("use_rslora") else float
    try:
        rank_of = {m: int(_matched(ranks, m, settings.get("r"))) for m in modules}
        scale_of = {m: float(_matched(alphas, m, alpha)) / root(rank_of[m]) for m in modules}
        rank = max(rank_of.values())
    except (TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise AdapterError(f"{where}: its ranks or alphas cannot be read: {error}.") from error
    usual = Counter(scale_of.values()).most_common(1)[0][0]
    whole = _whole(usual * root(rank))
    changed, n_rounded = dict(tensors), 0
    for module in modules:
        A_RI, B_OR = tensors[module + A], tensors.get(module + B)
        if B_OR is None or A_RI.dim() != 2 or B_OR.dim() != 2:
            continue  # `check_tensors` names it
        if not A_RI.shape[0] == B_OR.shape[1] == rank_of[module]:
            raise AdapterError(
                f"{where}: {module!r} has A {tuple(A_RI.shape)} and B {tuple(B_OR.shape)}, and its "
                f"settings rank {rank_of[module]}; copy the folder again."
            )
        factor, more = scale_of[module] * root(rank) / whole, rank - rank_of[module]
        n_rounded += math.frexp(factor)[0] != 0.5
        changed[module + A] = nn.functional.pad(A_RI, (0, 0, 0, more))
        changed[module + B] = nn.functional.pad((B_OR.double() * factor).float(), (0, more))
    notes = [f"ranks {_span(rank_of)} padded with zeros to {rank}, which changes nothing"] * (
        len(set(rank_of.values())) > 1
    )
    rounded = f"rounded to float32 in {n_rounded} modules" if n_rounded else "without rounding"
    notes += [f"scales {_span(scale_of)} folded into B, {rounded}"]
    plain = {"r": rank, "lora_alpha": whole, "rank_pattern": None, "alpha_pattern": None}
    return {**settings, **plain}, changed, tuple(notes)


def _matched(pattern: Mapping[str, Any], module: str, usual: Any) -> Any:
    matches = (v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(matches, usual)


def _whole(alpha: float) -> int:
    """A whole alpha that is this one times a power of two, or the next above it."""
    doubled = (alpha * 2**n for n in range(FOLDS + 1))
    return int(next((each for each in doubled if each >= 1 and each.is_integer()), 0)) or max(
        1, math.ceil(alpha)
    )


def _span(values: Mapping[str, float]) -> str:
    least, most = min(values.values()), max(values.values())
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"
