"""Further words for a question: a base rewords what is given, and what asks the same is trained.

The base is shown worked examples and a question, and writes it anew, several samples each. A sample
asks the same where an encoder puts it near the questions that are given for its answer, and nearer
to them than to those for any other answer; where it brings no name or number of its own, and does
not hold the answer. Of these the ones are taken that differ most from what is trained already.

A probe's words are never among them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from lorewright.knowledge.data import Example
from lorewright.knowledge.questions import Base, question_in
from lorewright.knowledge.scoring import contains, normalise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

N_SAMPLES = 4
"""Rewordings that are drawn of each question."""
LEAST_COSINE = 0.8
"""Of a rewording and the nearest question that is given for its answer."""
MARGIN = 0.05
"""By so much the nearest question for another answer has a smaller cosine."""

Embed = Callable[[list[str]], "NDArray[np.float32]"]
"""n texts to an array of n unit vectors."""


@dataclass(frozen=True)
class Reworder:
    """Who words questions anew, and who says whether they still ask the same."""

    base: Base
    embed: Embed

    def reword(
        self, given: Sequence[Example], n: int, taken: Collection[str] = ()
    ) -> list[Example]:
        """Given questions in further words, at most n for an answer.

        `taken` are questions, normalised, that may not be among them.
        """
        import numpy as np

        groups: dict[str, list[Example]] = {}
        for example in given:
            groups.setdefault(normalise(example.completion), []).append(example)
        by_answer = list(groups.values())
        drafts = self._drafts(by_answer, {*taken, *(normalise(e.prompt) for e in given)})
        if not any(drafts):
            return []
        given_QH = self.embed([example.prompt for same in by_answer for example in same])
        owner_Q = np.repeat(np.arange(len(by_answer)), [len(same) for same in by_answer])
        drafts_DH = self.embed([draft.prompt for own in drafts for draft in own])
        ends = np.cumsum([len(own) for own in drafts]).tolist()
        made = []
        for owner, (own, end) in enumerate(zip(drafts, ends, strict=True)):
            own_DH, is_own_Q = drafts_DH[end - len(own) : end], owner_Q == owner
            alike = _alike(own_DH @ given_QH.T, is_own_Q)
            chosen = farthest_first(own_DH[alike], given_QH[is_own_Q], n)
            made += [own[alike[i]] for i in chosen]
        return made

    def _drafts(
        self, by_answer: Sequence[Sequence[Example]], taken: Collection[str]
    ) -> list[list[Example]]:
        """What the base words for each answer, less what is taken, strange, or tells the answer."""
        prompts = [to_reword(example.prompt) for same in by_answer for example in same]
        replies = iter(self.base.continue_turns(turns(), prompts, N_SAMPLES) if prompts else ())
        drafts = []
        for same in by_answer:
            known = " ".join(example.prompt for example in same)
            fresh: dict[str, Example] = {}
            for example in same:
                for question in filter(None, (question_in(r, known) for r in next(replies))):
                    plain = normalise(question)
                    if plain not in taken and not contains(question, (example.completion,)):
                        fresh.setdefault(plain, replace(example, prompt=question))
            drafts.append(list(fresh.values()))
        return drafts


def to_reword(question: str) -> str:
    """The prompt for a base that is to word a question anew."""
    return f"Ask the same in other words: {question}"


@cache
def turns() -> tuple[tuple[str, str], ...]:
    """The worked examples as turns of a conversation."""
    text = (files("lorewright.knowledge") / "rewordings.txt").read_text(encoding="utf-8")
    blocks = (block.split("\n") for block in text.strip().split("\n\n"))
    return tuple((to_reword(question), other) for question, other in blocks)


def _alike(cosine_DQ: NDArray[np.float32], own_Q: NDArray[np.bool_]) -> list[int]:
    """The drafts that ask what their own questions ask, and nothing else."""
    import numpy as np

    near_D = cosine_DQ[:, own_Q].max(axis=1, initial=-1.0)
    other_D = cosine_DQ[:, ~own_Q].max(axis=1, initial=-1.0)
    is_alike_D = (near_D >= LEAST_COSINE) & (near_D - other_D >= MARGIN)
    alike: list[int] = np.flatnonzero(is_alike_D).tolist()
    return alike


def farthest_first(
    drafts_DH: NDArray[np.float32], given_QH: NDArray[np.float32], n: int
) -> Iterator[int]:
    """At most n rows of unit vectors, each the one least near to all that came before.

    Gonzalez 1985, farthest-point traversal, by cosine.
    """
    import numpy as np

    if not len(drafts_DH):
        return
    near_D = (drafts_DH @ given_QH.T).max(axis=1)
    for _ in range(min(n, len(drafts_DH))):
        i = int(near_D.argmin())
        yield i
        near_D = np.maximum(near_D, drafts_DH @ drafts_DH[i])
        near_D[i] = np.inf
