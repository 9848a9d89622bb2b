"""Encoders of tests: one that hashes words and a small random BERT as a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lorewright.files import save_json
from lorewright.models.encoders import MEAN, Encoder
from lorewright.routing.lexicon import tokens

WIDTH = 512


def hashing(texts: list[str]) -> NDArray[np.float32]:
    """Counts of words and of their four-letter beginnings, each at a place that its digest says."""
    vector_ND = np.zeros((len(texts), WIDTH), dtype=np.float32)
    for vector_D, text in zip(vector_ND, texts, strict=True):
        for term in tokens(text):
            for piece in (term, f"{term[:4]}…"):
                place = int.from_bytes(hashlib.sha256(piece.encode()).digest()[:4], "big")
                vector_D[place % WIDTH] += len(piece) ** 0.5
    return vector_ND


HASHING = Encoder("hashing@1", hashing)


def tiny_encoder(folder: Path, *, pooling: str = MEAN, seed: int = 0) -> Path:
    """Write a random BERT of two layers that reads letters, as sentence-transformers keeps it."""
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: n for n, piece in enumerate([*letters, *(f"##{c}" for c in letters[4:])])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, sep_token="[SEP]", **special
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    save_json({"word_embedding_dimension": 16, pooling: True}, folder / "1_Pooling" / "config.json")
    return folder
