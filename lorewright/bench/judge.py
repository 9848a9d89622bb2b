"""Another language model says from 0 to 10 how good a free answer is; none of its doubts is a zero.

It sees the question, the set's own answers and the reply, and nothing of who replied. A reply of
the judge without a number from 0 to 10 leaves the answer unscored, and that is counted. It is asked
once for equal cases; what it said is kept. This room knows prompts and numbers; the network is
`teacher`'s.

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
"""Cases to scores from 0 to 10; None where the judge said none."""


def at(url: str, folder: Path) -> Judge:
    """Return the judge at an address; its replies are kept in the folder. Raises as `connect`."""
    return judge(connect(url, cache=folder / REPLIES_FILE))


def judge(ask_llm: AskLLM) -> Judge:
    """Return a judge that puts its prompt to a language model; an empty output is 0 unasked."""

    def scored(cases: Sequence[Case]) -> list[float | None]:
        prompts = [_prompt(case) for case in cases]
        asked = [p for p, case in zip(prompts, cases, strict=True) if case.output.strip()]
        unique = list(dict.fromkeys(asked))
        said = dict(zip(unique, ask_llm(unique) if unique else [], strict=True))
        return [number_of(said[p]) if p in said else 0.0 for p in prompts]

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
    found = {float(number) for number in _NUMBER.findall(reply)}
    (value,) = found if len(found) == 1 else (None,)
    return value if value is not None and value <= HIGHEST else None
