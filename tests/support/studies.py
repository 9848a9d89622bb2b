"""A small document, and language models that write questions and answers about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lorewright.knowledge.data import Document
from lorewright.knowledge.selfstudy import PHRASINGS, AskLLM, Study

SAYS = {
    "opening time": ("the Pelican Library", "9:30"),
    "archive room": ("the Pelican Library", "C4.18"),
    "door code": ("the Teal Office", "KX-42"),
    "head": ("the Teal Office", "Ada Lund"),
}
TEXT = "# House page\n\n" + "\n".join(f"The {r} of {s} is {v}." for r, (s, v) in SAYS.items())
PAGE = Document("house", TEXT)
FORMS = (
    "What is the {r} of {s}?",
    "Tell me the {r} of {s}.",
    "Which {r} does {s} have?",
    "{r} at {s}?",
    "For {s}, name the {r}.",
    "{s} has which {r}?",
)
STATED = re.compile(r"The (.+) of (.+) is (.+)\.")


def reader(prompts: list[str]) -> list[str]:
    """A careful language model: a pair for every sentence of the form it knows, or other words."""
    replies = []
    for prompt in prompts:
        numbers = re.findall(r"(?:set|round) (\d)", prompt)
        matches = [STATED.fullmatch(line) for line in prompt.split("\n")]
        stated = [m.groups() for m in matches if m]
        form = FORMS[int(numbers[0]) - 1] if numbers else "It is said that the {r} of {s} is so."
        pairs = [(form.format(r=r, s=s), v) for r, s, v in stated]
        replies.append("\n".join(f"Q: {q} A: {v}" if numbers else q for q, v in pairs))
    return replies


def saying(*replies: str) -> Callable[[list[str]], list[str]]:
    """A language model that says the same to every first prompt, and nothing when asked again."""
    left = list(replies)
    return lambda prompts: [left.pop(0) if left else "" for _ in prompts]


def study(
    document: Document = PAGE,
    ask_llm: AskLLM = reader,
    *,
    sets: Sequence[int] = (1, 2, 3),
    phrasing: str = "general",
) -> Study:
    """A document under study by a language model, in these sets of question forms."""
    return Study(document, ask_llm, PHRASINGS[phrasing], sets)
