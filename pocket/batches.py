"""Conversations as padded token batches, and the tokenizer they are written in.

A pool of conversations is drawn from one seed, sorted by length and cut into batches of nearly equal
token counts, so that little is spent on padding. Knows nothing of the model or the optimiser.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from world import TASKS, Turn, conversation

STRAIGHT = {
    "‘’‚‛": "'",
    "“”„«»": "'",
    "‐‑‒–—−": "-",
    "\u00a0\u2009\u202f": " ",
    "…": "...",
}
"""Typographic marks, which the base never sees, and what it reads for them."""
PAD, BOS, SYSTEM, USER, ASSISTANT, END = (
    "<|pad|>",
    "<|bos|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
# The space before the content makes an answer's first token the same as inside a passage.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PLAIN_WEIGHT = 0.02
"""Loss weight of tokens that are not part of a reply: names are invented, so most of it is noise."""


def train_tokenizer(folder: Path, *, vocab_size: int, n_conversations: int, seed: int) -> None:
    """Fit a byte-level BPE with single digits on sampled conversations and save it as a fast tokenizer."""
    rng = random.Random(f"tokenizer-{seed}")
    shares = {name: share for name, (_, share) in TASKS.items()}
    texts = (
        f" {text}"
        for _ in range(n_conversations)
        for turn in conversation(rng, rng.randint(1, 8), shares)
        for text in (turn.user, turn.reply)
    )
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    raw.normalizer = normalizers.Sequence(
        [normalizers.Replace(mark, plain) for marks, plain in STRAIGHT.items() for mark in marks]
    )
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS, SYSTEM, USER, ASSISTANT, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
    )
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Batch:
    """Token ids and loss weights, right-padded: ids_BT, weight_BT (weight of predicting that token)."""

    ids_BT: Tensor
    weight_BT: Tensor


@dataclass(frozen=True)
class Level:
    """A rung of the curriculum: the longest passage in facts, the shares of the tasks, and when at the latest."""

    max_facts: int
    shares: dict[str, float]
    latest: float
    """Share of the run after which the level is entered, mastered or not."""
    usual: int = 10
    """Five passages of six have at most this many facts."""


SHARES = {name: share for name, (_, share) in TASKS.items()}
PLAIN = {
    "plain_reading": 0.62,
    "plain_reversing": 0.15,
    "reciting": 0.17,
    "closed_book": 0.03,
    "rephrasing": 0.03,
}
LEVELS = (
    Level(3, PLAIN, 0.0),
    Level(6, PLAIN, 0.05),
    Level(5, SHARES | {"plain_reading": 0.25, "reciting": 0.08}, 0.16),
    Level(10, SHARES, 0.26),
    Level(16, SHARES, 0.5),
    Level(30, SHARES, 0.62),
    Level(50, SHARES, 0.74),
    Level(
        50, SHARES | {"pairs": 0.42, "reading": 0.36, "summary": 0.06, "plain_reading": 0.02}, 0.87
    ),
    Level(
        50,
        SHARES
        | {"pairs": 0.46, "reading": 0.2, "refusing": 0.22, "summary": 0.08, "plain_reading": 0.02},
        0.9,
        usual=14,
    ),
    Level(
        50,
        SHARES
        | {
            "pairs": 0.34,
            "pairs_short": 0.12,
            "reading": 0.24,
            "refusing": 0.1,
            "refusing_long": 0.2,
            "summary": 0.1,
            "plain_reading": 0.02,
        },
        0.95,
        usual=14,
    ),
)
"""Plain words first, then everything, then ever longer passages; last, more of writing and refusing."""


def tokenise(
    tokenizer: PreTrainedTokenizerFast, talks: list[list[Turn]]
) -> list[tuple[list[int], list[float]]]:
    """Ids and weights of each conversation, equal to the chat template's text tokenised at once."""
    texts = [f" {text}" for turns in talks for turn in turns for text in (turn.user, turn.reply)]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    bos, user, assistant, end = tokenizer.convert_tokens_to_ids([BOS, USER, ASSISTANT, END])
    rows = []
    for turns in talks:
        ids, weights = [bos], [0.0]
        for turn in turns:
            question, reply = next(encoded), next(encoded)
            ids += [user, *question, end, assistant, *reply, end]
            weights += (
                [0.0]
                + [PLAIN_WEIGHT] * len(question)
                + [0.0, 0.0]
                + [turn.weight] * (len(reply) + 1)
            )
        rows.append((ids, weights))
    return rows


def pool(
    tokenizer: PreTrainedTokenizerFast,
    seed: str,
    level: int,
    *,
    n_batches: int,
    batch_tokens: int,
    max_tokens: int,
) -> list[Batch]:
    """About `n_batches` batches of at most `batch_tokens` padded tokens, in an order drawn from `seed`.

    Six conversations of ten are of this level, the others of one below: nothing learnt is left.
    """
    rng = random.Random(seed)
    rows: list[tuple[list[int], list[float]]] = []
    total = 0
    while total < n_batches * batch_tokens:
        talks = []
        for _ in range(64):
            at = LEVELS[level if rng.random() < 0.6 else rng.randint(0, level)]
            talks.append(conversation(rng, _n_facts(rng, at), at.shares))
        fresh = [row for row in tokenise(tokenizer, talks) if len(row[0]) <= max_tokens]
        rows += fresh
        total += sum(len(ids) for ids, _ in fresh)
    rows.sort(key=lambda row: len(row[0]))
    batches = list(_cut(rows, batch_tokens, tokenizer.convert_tokens_to_ids(PAD)))
    rng.shuffle(batches)
    return batches


def _n_facts(rng: random.Random, at: Level) -> int:
    """Evenly up to the usual; beyond, one passage in six: a long row costs as much as many short ones."""
    if at.max_facts > at.usual and rng.random() < 0.17:
        return round(math.exp(rng.uniform(math.log(at.usual), math.log(at.max_facts))))
    return rng.randint(1, min(at.max_facts, at.usual))


def _cut(rows: list[tuple[list[int], list[float]]], batch_tokens: int, pad: int) -> Iterator[Batch]:
    group: list[tuple[list[int], list[float]]] = []
    for row in rows:
        if group and len(row[0]) * (len(group) + 1) > batch_tokens:
            yield _padded(group, pad)
            group = []
        group.append(row)
    if group:
        yield _padded(group, pad)


def _padded(group: list[tuple[list[int], list[float]]], pad: int) -> Batch:
    width = -(-max(len(ids) for ids, _ in group) // 8) * 8
    ids = torch.full((len(group), width), pad)
    weights = torch.zeros(len(group), width)
    for i, (row, weight) in enumerate(group):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(weight)
    return Batch(ids, weights)
