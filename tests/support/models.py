"""What several test modules share: models."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
)

from lorewright.adapters.adapter import Adapter, capture
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.models.model import Model

SPECIAL = ["<pad>", "<bos>", "<|end|>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"]


PLAIN = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def letters(template: str | None = PLAIN) -> PreTrainedTokenizerFast:
    """One token a character: ids below 100, so that it fits every family."""
    known = [*SPECIAL, *string.ascii_letters, *string.digits, *" .?,:-'\n<>/|"]
    vocabulary = {token: i for i, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|end|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
    )
    made.chat_template = template
    return made


def saved(network: Any, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    network.save_pretrained(folder)
    (tokenizer or letters()).save_pretrained(folder)
    return str(folder)


def an_adapter(model: Model, seed: int = 0, **changes: Any) -> Adapter:
    """An adapter with numbers in B, so that it does something."""
    config = LoraConfig(rank=2, seed=seed)
    with attach(model.network, [config]) as stack:
        tensors = stack.tensors(0)
        generator = torch.Generator().manual_seed(seed)
        for key in tensors:
            if key.endswith("lora_B.weight"):
                tensors[key] = torch.randn(tensors[key].shape, generator=generator)
        stack.load(0, tensors)
        origin = {"base_id": model.name, "base_digest": model.digest, **changes}
        return capture(stack, 0, **origin)
