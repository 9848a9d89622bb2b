"""A base's network and tokenizer from disk or the hub; no code that came with a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError

from lorewright.adapters import quantise
from lorewright.errors import ConfigError, ModelError, first_line
from lorewright.models.catalogue import KNOWN, POCKET, located
from lorewright.models.plain import read_plain
from lorewright.models.plain_tokenizer import read_plain_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AUTO, TRANSFORMERS = "auto", "transformers"
IMPLEMENTATIONS = AUTO, TRANSFORMERS
"""Whose network a base is: transformers' always, or ours where that gives the same bits."""


def read_base(
    name: str,
    *,
    dtype: str,
    device: str | None,
    revision: str | None,
    implementation: str = AUTO,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Network, on the device, and tokenizer of a base by name; `Model.load` has the arguments.

    Raises ModelError with what was tried, ConfigError for an implementation that is none.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"implementation {implementation!r} is unknown; use one of "
            f"{', '.join(IMPLEMENTATIONS)}."
        )
    place = located(name)
    local = "/" not in place or place.startswith((".", "/"))
    if local and not Path(place).is_dir():
        raise ModelError(
            f"the base model {name!r} is none of {', '.join((POCKET, *KNOWN))}, no folder with "
            "config.json and no .gguf file; give one of these, or a hub name like Qwen/Qwen3-0.6B."
        )
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if implementation == AUTO and target == "cpu" and (plain := _plain(place, dtype)):
        return plain
    how = quantise.loading(target) if dtype == quantise.NF4 else {"dtype": dtype}
    try:
        with without_progress_bar():
            network, tokenizer = _from_pretrained(place, how, revision)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        fetch = f"Fetch it first: lore models get {name}"
        check = "Check the name, the network and HF_HOME, or give a folder."
        raise ModelError(
            f"the base model {name!r} could not be loaded: {first_line(error)}. "
            f"{fetch if name in KNOWN else check}"
        ) from error
    try:
        return network.to(torch.device(target)), tokenizer  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ModelError(
            f"the base model {name!r} could not be put on {target!r}: {first_line(error)}; "
            "use device cpu."
        ) from error


def _plain(place: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Our own network of a folder, and its tokenizer, where transformers would read the same.

    None otherwise, and for whatever is wrong with the files: transformers then says what. Without
    importing it a command starts in half the time.
    """
    folder = Path(place)
    if dtype not in ("auto", "float32"):
        return None
    tokenizer = read_plain_tokenizer(folder)
    if tokenizer is None or tokenizer("a").input_ids == tokenizer("b").input_ids:
        return None
    if (network := read_plain(folder)) is None:
        return None
    # They have what callers use of transformers' own, importing which must not happen here.
    return cast("PreTrainedModel", network), cast("PreTrainedTokenizerBase", tokenizer)


def _from_pretrained(
    place: str, how: Mapping[str, Any], revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Network and tokenizer of a folder or hub name. Raises ValueError for what is not whole."""
    from transformers import (  # model classes take seconds to import
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
    )

    safely = {"revision": revision, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(place, **safely)
    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder-decoder, not a causal language model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **safely)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"no tokenizer comes with it ({first_line(error)})") from error
    if tokenizer("a").input_ids == tokenizer("b").input_ids:  # made up for lack of files
        raise ValueError("no tokenizer comes with it (none that tells a from b)")
    images = "ForConditionalGeneration" in " ".join(config.architectures or ())
    auto_class: Any = AutoModelForImageTextToText if images else AutoModelForCausalLM
    network, info = auto_class.from_pretrained(place, **how, **safely, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{len(missing)} weights of {type(network).__name__} are not in its files and would "
            f"be random, the first is {missing[0]}"
        )
    return network, tokenizer


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Without the bar that counts weights; those of downloads stay."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def context_length(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest sequence it reads, in tokens: the smaller of the model's and the tokenizer's."""
    text = network.config.get_text_config().to_dict()
    limits = [int(text["max_position_embeddings"])] if text.get("max_position_embeddings") else []
    if tokenizer.model_max_length < 10**9:
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=1024)


def stop_ids(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """Token ids that end a reply, the tokenizer's own first. Raises ModelError if there is none."""
    generation = network.generation_config
    more = generation.eos_token_id if generation is not None else None
    ids = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    stops = list(dict.fromkeys(int(i) for i in ids if i is not None))
    if not stops:
        raise ModelError(f"{name!r} names no end-of-text token; set eos_token in its tokenizer.")
    return stops
