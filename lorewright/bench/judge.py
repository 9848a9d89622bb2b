"""Another language model scores free answers from 0 to 10; unparsable verdicts are counted apart.

It sees the question, the set's own answers and the reply, and nothing of who replied. A verdict
without a number from 0 to 10 leaves the answer unscored. Equal cases are judged once, and verdicts
are stored. Knows prompts and numbers; the network is `teacher`'s.

After "Understanding LoRA as Knowledge Memory", arXiv 2603.01097, where a judge scores facts
aligned, complete and relevant from 0 to 10, and where its failures count as 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lorewright.knowledge.selfstudy import AskLLM
from lorewright.knowledge.teacher import connect

REPLIES_FILE = "judge.jsonl"
HIGHEST = 10
PROMPT = """You grade an answer against reference answers.

Question: {question}
Reference: {reference}
Answer: {answer}

Give one whole number from 0 to 10: 10 if the answer states every fact of a reference that the \
question asks for and nothing false or beside the point; 5 if about half of it is right; 0 if it \
states none of it, contradicts it, or declines. Other words for the same fact are as good. \
Reply with the number only."""

_NUMBER = re.compile(r"(?<![\w.,/-])(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*10)?(?![\w/]|[.,]\d)")


class Case(NamedTuple):
    """What is judged."""

    question: str
    answers: tuple[str, ...]
    output: str


Judge = Callable[[Sequence[Case]], list[float | None]]
"""Cases to scores from 0 to 10; None where the judge gave none."""


def at(url: str, folder: Path) -> Judge:
    """Return the judge at an address; its replies are stored in the folder. Raises as `connect`."""
    return judge(connect(url, cache=folder / REPLIES_FILE))


def judge(ask_llm: AskLLM) -> Judge:
    """Return a judge that puts its prompt to a language model; an empty output is 0 unasked."""

    def scored(cases: Sequence[Case]) -> list[float | None]:
        prompts = [_prompt(case) for case in cases]
        answered = [p for p, case in zip(prompts, cases, strict=True) if case.output.strip()]
        unique = list(dict.fromkeys(answered))
        replies = dict(zip(unique, ask_llm(unique) if unique else [], strict=True))
        return [number_of(replies[p]) if p in replies else 0.0 for p in prompts]

    return scored


def _prompt(case: Case) -> str:
    # Not str.format: a question may hold braces.
    words = {"question": case.question, "answer": case.output}
    words["reference"] = " / ".join(case.answers)
    return re.sub(r"\{(\w+)\}", lambda match: " ".join(words[match[1]].split()), PROMPT)


def number_of(reply: str) -> float | None:
    """Return the number from 0 to 10 that a judge's reply holds, if it holds exactly one.

    Numbers above 10 and replies that name several are no verdict: None.
    """
    numbers = {float(number) for number in _NUMBER.findall(reply)}
    (value,) = numbers if len(numbers) == 1 else (None,)
    return value if value is not None and value <= HIGHEST else None
