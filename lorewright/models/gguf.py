"""A GGUF file to a folder that transformers loads: float32 weights, tokenizer, chat template."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from lorewright.errors import ModelError, StorageError, first_line


def convert(file: Path, folder: Path) -> None:
    """Read a GGUF file through transformers and save it as a model folder, whole or not at all.

    Values are those that the quantised file holds, in float32. Raises ModelError for a file that is
    damaged, of an architecture that transformers does not read from GGUF, or when the package
    `gguf` is missing; StorageError when the disk refuses.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
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
        try:
            network.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            os.replace(temporary, folder)
        except OSError as error:
            if not (folder / "config.json").is_file():  # another process may have been quicker
                raise StorageError(
                    f"{folder} could not be written: {error}; check space and permissions."
                ) from error
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
        shutil.rmtree(temporary, ignore_errors=True)
