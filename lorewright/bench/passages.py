"""Texts of an exact number of tokens, of which a share is random, that survive being text.

What is written is a string, and what is measured are its tokens: so the tokens that a model makes
of the string must be those that were drawn. Natural text is an invented world's or a file's; random
tokens are drawn from the whole vocabulary, as far as decoding and encoding again gives them back,
and the base can say them at all.

This room knows tokenizers. It knows nothing of adapters or of what becomes of the texts.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorewright.bench.prose import prose
from lorewright.errors import DataError
from lorewright.files import digest, read_text
from lorewright.knowledge.data import Example
from lorewright.models.model import Model

PROMPT = "Recite the stored text."
"""The one key that all passages have."""
TRIES = 200  # random tokens tried at a position, and beginnings of a natural text
WINDOW = 12  # tokens before and after a new one within which encoding may change

_POOLS: weakref.WeakKeyDictionary[Model, tuple[int, ...]] = weakref.WeakKeyDictionary()

_SAYABLE: weakref.WeakKeyDictionary[Model, dict[int, bool]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Passage:
    """A text to be recited, and what it is made of."""

    example: Example
    ids: tuple[int, ...]
    """Its tokens, the stop token not among them."""
    n_random: int

    @property
    def digest(self) -> str:
        """What tells it apart from others."""
        return digest([self.example.completion])


def passage(
    model: Model, n_tokens: int, noise: int, name: str, *, text: Path | str = ""
) -> Passage:
    """Return the passage of that name: n_tokens answer tokens, noise per cent of them random.

    The same model, name, length and noise give the same passage. Without ``text``, a file, natural
    tokens are about an invented world, another one for every name. Raises DataError where the file
    is too short, or no such text survives.
    """
    rng = random.Random(f"{name}/{noise}/{n_tokens}")
    if not 0 <= noise <= 100:
        raise DataError(f"noise is {noise}; give per cent of random tokens, from 0 to 100.")
    natural = _natural(model, n_tokens, rng, Path(text) if text else None)
    n_random = round(n_tokens * noise / 100)
    ids = _with_noise(model, natural, n_random, rng, WINDOW)
    if _spoken(model, ids) != ids:  # a neighbourhood misled: look at the whole each time
        ids = _with_noise(model, natural, n_random, rng, n_tokens)
    return Passage(Example(PROMPT, model.decode(ids)), tuple(ids), n_random)


def _natural(model: Model, n_tokens: int, rng: random.Random, text: Path | None) -> list[int]:
    """The first tokens of a natural text that are its first tokens also when they stand alone."""
    for _ in range(TRIES):
        if text is None:
            words = prose(rng, n_tokens).split()
        else:
            words = read_text(text).split()
            start = rng.randrange(max(1, len(words) - n_tokens // 4))
            words = words[start : start + n_tokens]
        said = model.tokenizer(
            " " + " ".join(words), add_special_tokens=False, truncation=True, max_length=n_tokens
        )
        ids = [int(i) for i in said["input_ids"]]
        if len(ids) == n_tokens and (found := _spoken(model, ids)):
            return found
    where = "the invented text" if text is None else text
    raise DataError(
        f"asked for {n_tokens} tokens of {where} that {model.name!r} reads back as they are; none "
        f"of {TRIES} beginnings gives them; give a longer file, or fewer tokens."
    )


def _spoken(model: Model, ids: Sequence[int]) -> list[int] | None:
    """The answer tokens of the text of these, if there are as many; templates may change them."""
    try:
        found = model.render(PROMPT, model.decode(ids)).completion_ids[:-1]
    except DataError:  # it spells a stop token, or is too long
        return None
    again = model.render(PROMPT, model.decode(found)).completion_ids[:-1]
    return list(found) if len(found) == len(ids) and again == found else None


def _with_noise(
    model: Model, natural: Sequence[int], wanted: int, rng: random.Random, window: int
) -> list[int]:
    """Replace so many tokens by random ones, one by one, where what is within a window survives."""
    ids, n_random = list(natural), 0
    positions = list(range(len(ids)))
    rng.shuffle(positions)
    for position in sorted(positions[:wanted]) + positions[wanted:]:
        if n_random == wanted:
            break
        before = ids[position]
        for token in rng.choices(_pool(model), k=TRIES):
            ids[position] = token
            if _survives(model, ids, position, window) and _sayable(model, token):
                n_random += 1
                break
        else:
            ids[position] = before
    if n_random < wanted:
        raise DataError(
            f"asked for {wanted} random tokens of {len(ids)}; {model.name!r} reads back only "
            f"{n_random}; give less noise."
        )
    return ids


def _survives(model: Model, ids: Sequence[int], position: int, window: int) -> bool:
    """Whether decoding and encoding give back the tokens around a position."""
    first, last = max(0, position - window), position + window
    # Near the ends the template has a say, so the whole is tried as it will be written.
    if first == 0 or last >= len(ids):
        return _spoken(model, ids) == list(ids)
    text = model.tokenizer.decode(list(ids[first:last]))
    found = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(found) == list(ids[first:last])


def _pool(model: Model) -> tuple[int, ...]:
    """Tokens that are the encoding of their own text: no part of a character, nothing special."""
    if model not in _POOLS:
        tokenizer = model.tokenizer
        special = set(tokenizer.all_special_ids)
        every = [i for i in range(len(tokenizer)) if i not in special]
        texts = [tokenizer.decode([i]) for i in every]
        again = tokenizer(texts, add_special_tokens=False)["input_ids"]
        _POOLS[model] = tuple(
            i
            for i, text, ids in zip(every, texts, again, strict=True)
            if str(text).strip() and list(ids) == [i]
        )
    return _POOLS[model]


def _sayable(model: Model, token: int) -> bool:
    """Whether a hidden state in the direction of the token's own row of the head says it.

    Tokens that no text of the base's training held have rows that others cover, and no adapter can
    make them the most likely: a text with one of them cannot be recited.
    """
    known = _SAYABLE.setdefault(model, {})
    if token not in known:
        head_VD = model.network.get_output_embeddings().weight.detach()
        known[token] = int((head_VD @ head_VD[token]).argmax()) == token
    return known[token]
