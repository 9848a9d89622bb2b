"""Texts of an exact number of tokens, of which a share is random, that survive being text.

What is written is a string, and what is measured are its tokens: so the tokens that a model makes
of the string must be those that were drawn. Natural text is an invented world's or a file's; random
tokens are drawn from the whole vocabulary, as far as decoding and encoding again gives them back,
and the base can say them at all.

Knows tokenizers and English words; nothing of adapters or of what becomes of the texts.
"""

from __future__ import annotations

import functools
import random
import string
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorewright.errors import DataError
from lorewright.files import digest, read_object, read_text
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
        encoded = model.tokenizer(
            " " + " ".join(words), add_special_tokens=False, truncation=True, max_length=n_tokens
        )
        ids = [int(i) for i in encoded["input_ids"]]
        if len(ids) == n_tokens and (ids_again := _spoken(model, ids)):
            return ids_again
    where = "the invented text" if text is None else text
    raise DataError(
        f"{n_tokens} tokens of {where} are needed that {model.name!r} reads back as they are; none "
        f"of {TRIES} beginnings gives them; give a longer file, or fewer tokens."
    )


def _spoken(model: Model, ids: Sequence[int]) -> list[int] | None:
    """The answer tokens of the text of these, if there are as many; templates may change them."""
    try:
        ids_again = model.render(PROMPT, model.decode(ids)).completion_ids[:-1]
    except DataError:  # it spells a stop token, or is too long
        return None
    again = model.render(PROMPT, model.decode(ids_again)).completion_ids[:-1]
    return list(ids_again) if len(ids_again) == len(ids) and again == ids_again else None


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
            f"{wanted} of {len(ids)} tokens are to be random; {model.name!r} reads back only "
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
    ids_again = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids_again) == list(ids[first:last])


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


# -- an invented world: the sentences that the embedded base was trained on ------------------------

WORLD = Path(__file__).parent / "world.json"


@functools.cache
def _words() -> dict[str, list[str]]:
    """Names, kinds of thing and forms of sentence of the invented world."""
    return read_object(WORLD, "install lorewright again")


Draw = Callable[[random.Random], str]


def invented(rng: random.Random) -> str:
    """Return a pronounceable word of one or two syllables that means nothing, capitalised."""
    n = rng.choice((1, 2, 2))
    parts = ("onsets", "vowels", "codas") * n
    return "".join(rng.choice(_words()[part]) for part in parts).capitalize()


def person(rng: random.Random) -> str:
    """Return a first and a last name; the last one is invented."""
    return f"{rng.choice(_words()['first names'])} {invented(rng)}"


def digits(rng: random.Random, n: int) -> str:
    """Return n digits of which the first is not 0."""
    return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in range(n - 1))


def prose(rng: random.Random, n_words: int) -> str:
    """Return at least so many words of statements about a few subjects, one after the other."""
    subjects = [_subject(rng) for _ in range(max(2, n_words // 60))]
    text: list[str] = []
    while len(text) < n_words:
        relation, value = rng.choice(_RELATIONS)
        named = (
            f"{rng.choice(_words()['modifiers'])} {relation}" if rng.random() < 0.5 else relation
        )
        sentence = rng.choice(_words()["sentences"]).format(
            r=named, s=rng.choice(subjects), v=value(rng)
        )
        text += (sentence[0].upper() + sentence[1:]).split()
    return " ".join(text)


def _subject(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.5:
        return f"the {invented(rng)} {rng.choice(_words()['kinds'])}"
    return person(rng) if draw < 0.7 else f"Project {invented(rng)}"


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 2)))
    return f"{letters}-{digits(rng, rng.randint(2, 4))}"


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_words()['months'])} {rng.randint(1950, 2049)}"


def _from(kind: str) -> Draw:
    return lambda rng: rng.choice(_words()[kind])


_RELATIONS: tuple[tuple[str, Draw], ...] = (
    ("code", _code),
    ("room", lambda rng: f"{rng.choice('ABCDEFGH')}{rng.randint(1, 9)}.{rng.randint(10, 49)}"),
    ("owner", person),
    ("keeper", person),
    ("colour", _from("colours")),
    ("mascot", _from("animals")),
    ("password", _from("things")),
    ("opening", _date),
    ("number", lambda rng: digits(rng, rng.randint(2, 5))),
    ("town", invented),
    ("price", lambda rng: f"{rng.randint(2, 999)} euros"),
    ("supplier", lambda rng: f"{invented(rng)} Trading"),
)
