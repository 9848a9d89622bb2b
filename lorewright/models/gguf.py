"""A GGUF file to a folder that transformers loads: float32 weights, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from lorewright.errors import ModelError, first_line
from lorewright.files import new_folder


def convert(file: Path, folder: Path) -> None:
    """Read a GGUF file through transformers and save it as a model folder, whole or not at all.

    Values are those that the quantised file holds, in float32. Raises ModelError for a file that is
    damaged, of an architecture that transformers does not read from GGUF, or when the package
    `gguf` is missing; StorageError when the disk refuses.
    """
    shown = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        try:
            place, name = str(file.parent), file.name
            network = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype="float32")
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
        except ImportError as error:
            raise ModelError(
                f"reading {file.name} needs the package gguf ({first_line(error)}): pip install "
                "lorewright[gguf]."
            ) from error
        except (OSError, ValueError, KeyError, RuntimeError, IndexError) as error:
            raise ModelError(
                f"{file} could not be read as a GGUF model: {first_line(error)}; check that the "
                "download is whole and that transformers reads its architecture from GGUF."
            ) from error
        # The weights are plain float32 from here on; saving refuses what says that it is quantised.
        vars(network)["hf_quantizer"] = None
        vars(network.config).pop("quantization_config", None)
        with new_folder(folder, made="config.json") as temporary:
            network.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
