"""When a reply is long enough: more text could not change its score.

A chat model goes on after it has answered. A reply may end with the sentence or line after which
its score is certain; its text until then is what it would have been anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lorewright.knowledge.data import Probe
from lorewright.knowledge.scoring import contains, is_declined, normalise, opens_with_an_answer

LOOPS_SETTLE = ("exact_match", "contains")
"""Metrics for which a reply that goes round in circles says nothing new."""
_END = re.compile(r"[.!?:;](?=\s)|\n")

Settled = Callable[[str, tuple[str, ...]], bool]
"""(whole sentences of a reply, acceptable answers) -> whether the score cannot change any more."""


def _exact_match(text: str, answers: tuple[str, ...]) -> bool:
    """It is longer than every answer, and text that is compared never becomes shorter."""
    return len(normalise(text)) > max(len(normalise(answer)) for answer in answers)


def _contains(text: str, answers: tuple[str, ...]) -> bool:
    """An answer stands there, and what follows is another sentence."""
    return contains(text, answers) == 1


def _verbatim_prefix(text: str, answers: tuple[str, ...]) -> bool:
    """It has left every answer, or is longer."""
    return not any(answer.strip().startswith(text) for answer in answers)


SETTLED: dict[str, Settled] = {
    "exact_match": _exact_match,
    "contains": _contains,
    "verbatim_prefix": _verbatim_prefix,
}
"""By metric; the others read a whole reply."""


def whole_sentences(text: str) -> str:
    """The text up to its last line end, or end of a sentence that another one follows."""
    ends = [match.end() for match in _END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def settled(probe: Probe, metric: str, text: str, base_output: str | None = None) -> str | None:
    """The reply to a probe as far as its score needs it; None where it has to go on.

    `base_output`: the base's own reply, which kind `neighborhood` is compared with.
    """
    stated = whole_sentences(text)
    if probe.kind == "neighborhood":
        left = base_output is not None and not base_output.startswith(stated)
        return stated if left else None
    if probe.kind == "unknown":
        sure = opens_with_an_answer(stated) and not is_declined(stated)
    else:
        sure = metric in SETTLED and bool(stated) and SETTLED[metric](stated, probe.answers)
    return stated if sure else None
