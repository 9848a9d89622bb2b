"""Conversations about the synthetic world in which the embedded base model learns to read.

The world itself, subjects, relations, values and passages, is `lorewright/kits/world.py`. It knows
nothing of tokens, tensors or training; `train.py` turns conversations into batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorewright.kits.words import MONTHS, WORDS  # noqa: F401
from lorewright.kits.world import (  # noqa: F401 - the scripts beside this take them from here
    ASK,
    COMMON_VALUES,
    DECLINE,
    HELD_ASK,
    N_SETS,
    PLAIN_VALUES,
    RELATIONS,
    SAY,
    VALUES,
    Passage,
    Relation,
    Statement,
    absent,
    ask,
    digits,
    domain,
    held_ask,
    near_miss,
    passage,
    person,
    proper,
    pseudo_word,
    relation,
    say,
    set_ask,
    statements,
    subject,
)

READING_WEIGHT = 2.0
"""Answers are short and written pairs are long: without this, writing outweighs reading."""


@dataclass(frozen=True)
class Turn:
    """A user's message and the reply to learn."""

    user: str
    reply: str
    weight: float = 1.0
    """How much the reply's tokens count in training, at least 1."""


# -- instructions: the wording of requests to the base -----------------------------


def pairs_prompt(text: str, number: int) -> str:
    """Ask for question–answer pairs on a text, in the forms of set `number`."""
    return f"{text}\n\nWrite questions and answers, set {number}."


def pairs_reply(items: Sequence[Statement], number: int) -> str:
    """The pairs, one a line, in the order of the text."""
    return "\n".join(f"Q: {set_ask(item, number)} A: {item.value}" for item in items)


def rewrite_prompt(text: str, number: int) -> str:
    """Ask for the text in other words."""
    return f"{text}\n\nRewrite the text, style {number}."


def summary_prompt(text: str) -> str:
    """Ask for the facts of a text as short notes."""
    return f"{text}\n\nSummarise the text."


def rephrase_prompt(question: str, number: int) -> str:
    """Ask for the same question in the words of set `number`."""
    return f"{question}\n\nAsk this in other words, set {number}."


def reverse_prompt(value: str) -> str:
    """Ask which question a value answers."""
    return f"Which question has the answer: {value}?"


def fill_prompt(blanked: str) -> str:
    """Ask for what was left out of a statement."""
    return f"Fill in: {blanked}"


def recite_prompt(text: str) -> str:
    """Ask for a string back, character by character."""
    return f"Repeat exactly: {text}"


# -- conversations -------------------------------------------------------------------------------

_RECITE_LEADS = (
    recite_prompt,
    lambda text: f"Say this again: {text}",
    lambda text: f"Copy: {text}",
)


def arbitrary_string(rng: random.Random) -> str:
    """Digits, hex, a URL, code or loose words: something no habit can complete."""
    kind = rng.randrange(7)
    if kind == 0:
        return digits(rng, rng.randint(4, 20))
    if kind == 1:
        return "".join(rng.choice("0123456789abcdef") for _ in range(rng.randint(4, 24)))
    if kind == 2:
        return f"https://{domain(rng)}/{rng.choice(WORDS)}?id={digits(rng, rng.randint(2, 5))}"
    if kind == 3:
        a, b, c = (rng.choice(WORDS) for _ in range(3))
        return rng.choice(
            (
                f"{a} = {b}({digits(rng, 2)}, {c})",
                f"for {a} in {b}: {c} += {digits(rng, 1)}",
                f"{a}[{digits(rng, 1)}] = '{b}'",
                f"def {a}({b}): return {b} * {digits(rng, 2)}",
            )
        )
    if kind == 4:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 16)))
    if kind == 5:
        return " ".join(pseudo_word(rng) for _ in range(rng.randint(2, 8)))
    return "".join(
        rng.choice("abcdefghijklmnopqrstuvwxyz0123456789-_.") for _ in range(rng.randint(5, 16))
    )


def reading(
    rng: random.Random,
    n: int,
    plain: bool = False,
    *,
    untold: Callable[[random.Random, Passage], Statement] = absent,
    share: float = 0.25,
) -> list[Turn]:
    """Many questions on a passage, some of which it does not answer: most of a row is then about reading."""
    page = passage(rng, n, plain)
    turns: list[Turn] = []
    for item in rng.sample(page.statements, min(n, rng.randint(4, 16))):
        if rng.random() < share:
            turns.append(Turn(ask(rng, untold(rng, page)), DECLINE, READING_WEIGHT))
        turns.append(Turn(ask(rng, item), item.value, READING_WEIGHT))
    if rng.random() < 0.4:
        turns.append(Turn(ask(rng, untold(rng, page)), DECLINE, READING_WEIGHT))
    rng.shuffle(turns)
    return [replace(turns[0], user=f"{page.text}\n\n{turns[0].user}"), *turns[1:]]


def refusing(rng: random.Random, n: int) -> list[Turn]:
    """`reading` with nearly as many near misses as questions that the passage answers."""
    return reading(rng, n, untold=near_miss, share=0.8)


def refusing_long(rng: random.Random, n: int) -> list[Turn]:
    """`refusing` on pages of 10 to 26 facts, where most near misses were answered."""
    return refusing(rng, rng.randint(10, 26))


def plain_reading(rng: random.Random, n: int) -> list[Turn]:
    """`reading` in the plainest words there are: where telling facts apart is learnt."""
    return reading(rng, n, plain=True)


def reversing(rng: random.Random, n: int, plain: bool = False) -> list[Turn]:
    """Which question a value of the passage answers: the value has to know whose it is."""
    page = passage(rng, n, plain)
    values = [item.value for item in page.statements]
    chosen = [item for item in page.statements if values.count(item.value) == 1]
    chosen = rng.sample(chosen, min(len(chosen), 8)) or list(page.statements[:1])
    first, *rest = [Turn(reverse_prompt(item.value), set_ask(item, 1)) for item in chosen]
    return [replace(first, user=f"{page.text}\n\n{first.user}"), *rest]


def plain_reversing(rng: random.Random, n: int) -> list[Turn]:
    """`reversing` in plain words."""
    return reversing(rng, n, plain=True)


def filling(rng: random.Random, n: int) -> list[Turn]:
    """Statements of the passage with the value left out."""
    page = passage(rng, n)
    chosen = rng.sample(page.statements, min(n, 6))
    first, *rest = [
        Turn(fill_prompt(replace(item, value="____").fill(rng.choice(SAY))), item.value)
        for item in chosen
    ]
    return [replace(first, user=f"{page.text}\n\n{first.user}"), *rest]


def closed_book(rng: random.Random, n: int) -> list[Turn]:
    """Questions with nothing to read: declined."""
    return [Turn(ask(rng, item), DECLINE) for item in statements(rng, min(n, 4))]


def listing(rng: random.Random, n: int) -> list[Turn]:
    """A directory of `name: value` lines, questioned by name alone."""
    names = list(
        dict.fromkeys(person(rng) if rng.random() < 0.7 else subject(rng) for _ in range(n))
    )
    kind = rng.choice(("digits", "phone", "code", "room", "place"))
    rows = [(name, VALUES[kind](rng)) for name in names]
    text = "\n".join(f"{name}: {value}" for name, value in rows)
    chosen = rng.sample(rows, min(len(rows), 6))
    form = rng.choice(("{}:", "{}?", "What is listed for {}?"))
    first, *rest = [Turn(form.format(name), value) for name, value in chosen]
    return [Turn(f"{text}\n\n{first.user}", first.reply), *rest]


def pairs(rng: random.Random, n: int) -> list[Turn]:
    """Question–answer pairs for a passage, complete and in order."""
    page = passage(rng, n)
    number = rng.randint(1, N_SETS)
    return [Turn(pairs_prompt(page.text, number), pairs_reply(page.statements, number))]


def pairs_short(rng: random.Random, n: int) -> list[Turn]:
    """`pairs` for one fact or two: knowing when to stop."""
    return pairs(rng, rng.randint(1, 2))


def rewriting(rng: random.Random, n: int) -> list[Turn]:
    """The passage in another form: style k is `SAY[k-1]` throughout."""
    page = passage(rng, n)
    number = rng.randint(1, 4)
    reply = " ".join(item.fill(SAY[number - 1]) for item in page.statements)
    return [Turn(rewrite_prompt(page.text, number), reply)]


def summary(rng: random.Random, n: int) -> list[Turn]:
    """The passage as notes, a subject's facts together."""
    page = passage(rng, n)
    notes: dict[str, list[str]] = {}
    for item in page.statements:
        notes.setdefault(item.subject, []).append(f"{item.relation.name} {item.value}")
    reply = "\n".join(f"{who}: {'; '.join(what)}" for who, what in notes.items())
    return [Turn(summary_prompt(page.text), reply)]


def rephrasing(rng: random.Random, n: int) -> list[Turn]:
    """The same question in other words."""
    turns = []
    for item in statements(rng, min(n, 4)):
        number = rng.randint(1, N_SETS)
        turns.append(Turn(rephrase_prompt(ask(rng, item), number), set_ask(item, number)))
    return turns


def reciting(rng: random.Random, n: int) -> list[Turn]:
    """Arbitrary strings, repeated exactly."""
    lead = rng.choice(_RECITE_LEADS)
    return [Turn(lead(text), text) for text in (arbitrary_string(rng) for _ in range(min(n, 5)))]


Task = Callable[[random.Random, int], list[Turn]]

TASKS: dict[str, tuple[Task, float]] = {
    "reading": (reading, 0.50),
    "refusing": (refusing, 0.0),
    "refusing_long": (refusing_long, 0.0),
    "plain_reading": (plain_reading, 0.05),
    "pairs": (pairs, 0.16),
    "pairs_short": (pairs_short, 0.0),
    "reversing": (reversing, 0.05),
    "plain_reversing": (plain_reversing, 0.0),
    "filling": (filling, 0.03),
    "closed_book": (closed_book, 0.04),
    "listing": (listing, 0.04),
    "rewriting": (rewriting, 0.04),
    "summary": (summary, 0.03),
    "rephrasing": (rephrasing, 0.02),
    "reciting": (reciting, 0.04),
}
"""Each kind of conversation and its share of the training examples."""


def conversation(rng: random.Random, n: int, shares: dict[str, float]) -> list[Turn]:
    """A conversation of a kind drawn by `shares`, about n facts."""
    kind = rng.choices(list(shares), list(shares.values()))[0]
    return TASKS[kind][0](rng, n)
