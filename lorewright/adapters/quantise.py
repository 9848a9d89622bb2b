"""A base in four bits: NF4 with the scales quantised too, through bitsandbytes (the QLoRA base).

    Model.load(name, dtype="nf4")        lore write SOURCE --into atlas --dtype nf4

The linear layers of the decoder hold four bits a weight; adapters on them, embeddings, norms and
the head stay as they are. An adapter is written for the weights it was trained on: the quantised
base has another digest than the float one, and each refuses the other's adapters.

Paper: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from lorewright.errors import ModelError

NF4 = "nf4"
"""The name of this among dtypes."""
LAYER = "Linear4bit"
"""bitsandbytes' class, a subclass of torch.nn.Linear."""


def loading(device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise a base while it is loaded onto a device.

    Products are computed in bfloat16 on a GPU that has it, in float32 elsewhere. Raises ModelError
    without bitsandbytes or accelerate, or when there is no such device.
    """
    for package in ("bitsandbytes", "accelerate"):
        try:
            with hushed():
                import_module(package)
        except ImportError as error:
            raise ModelError(
                f"a base in nf4 needs {package}, which is not installed; run "
                "`pip install 'lorewright[quantise]'`, or load it in float32."
            ) from error
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"a base in nf4 cannot be put on {device!r}: torch sees none; use cpu.")
    halves = place.type == "cuda" and torch.cuda.is_bf16_supported()
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": NF4,
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16" if halves else "float32",
    }
    return {"dtype": "auto", "device_map": {"": device}, "quantization_config": settings}


@contextmanager
def hushed() -> Iterator[None]:
    """Inside, an import of bitsandbytes does not speak of kernels that are not used here."""
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def quantised(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that hold four bits a weight."""
    return [module for module in network.modules() if type(module).__name__ == LAYER]


def pass_gradients(network: nn.Module) -> None:
    """Have quantised layers pass gradients on, also after they have run without any.

    On processors with bfloat16 instructions bitsandbytes repacks a layer in its first pass without
    gradient, for a product that has none: layers below would learn nothing, and say nothing.
    """
    for layer in quantised(network):
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
