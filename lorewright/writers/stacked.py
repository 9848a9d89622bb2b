"""Many documents in one pass, each row with its own document's weights, gradients included.

The functional counterpart of `adapters.lora`: factors are arguments, not parameters, so that what a
step of an inner training leaves is a function of what it started from, and can be differentiated,
twice as well. Passes run in the network itself.

Knows the network's linear layers and its head; knows nothing of where the factors come from.

Shape letters: N documents, B rows, T tokens, C completion tokens, R rank, I in-features, O
out-features, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorewright.adapters.adapter import HALVES
from lorewright.adapters.targets import text_decoder
from lorewright.models.model import Model


@contextmanager
def with_factors(model: Model, factors: Mapping[str, Tensor], owner_B: Tensor) -> Iterator[None]:
    """Have linear layers add B A x of every row's document, for the length of a block.

    `factors` are, by module, A (N, R, I) and B (N, O, R) under the names that adapters have.
    """
    with ExitStack() as hooks:
        for name in names_of(factors):
            A_NRI, B_NOR = (factors[name + half] for half in HALVES)
            hook = partial(_added, A_NRI[owner_B], B_NOR[owner_B])
            layer = model.network.get_submodule(name)
            hooks.callback(layer.register_forward_hook(hook).remove)
        yield


def names_of(factors: Mapping[str, Tensor]) -> list[str]:
    """The modules that factors are for."""
    first = HALVES[0]
    return [name.removesuffix(first) for name in factors if name.endswith(first)]


def _added(
    A_BRI: Tensor, B_BOR: Tensor, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor
) -> Tensor:
    low_BTR = args[0].float() @ A_BRI.mT
    return y + (low_BTR @ B_BOR.mT).to(y.dtype)


def hidden(model: Model, ids_BT: Tensor) -> Tensor:
    """The decoder's last states (B, T, D)."""
    states: Tensor = text_decoder(model.network)(input_ids=ids_BT, use_cache=False)[0]
    return states


def twice_differentiable() -> AbstractContextManager[None]:
    """Have attention run as single operations in a block: fused ones have no second gradient."""
    return sdpa_kernel(SDPBackend.MATH)


def nats_of(
    model: Model, states_MD: Tensor, targets_M: Tensor, head: Tensor | None = None
) -> Tensor:
    """Loss in nats of some positions' next tokens; `head` (V, D) in the place of the model's."""
    if head is None:
        logits_MV = model.network.get_output_embeddings()(states_MD)
    else:
        logits_MV = F.linear(states_MD, head)
    return F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
