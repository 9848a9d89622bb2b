"""What a folder's gate is fitted on: questions whose memory is known, and questions of nobody.

By words alone, the lessons' trained questions are put to an index that lacks them, beside packaged
questions and the folder's own topics with subjects that nobody wrote. All get up to two words that
no key has, because questions in other words do; without them such questions look like ones about
other things.

With an encoder the same questions are put to the index that lacks them, which has their other
wordings, and to its passages and titles alone, for wordings that are like no trained one. Every
trained question is also put to the memories that do not answer it. These are the strangers that
come nearest, and are counted apart: neither of the two kinds is let through more often than the
rate says. For a memory that was never asked anything, sentences of its passages stand for
questions, some put to an index in which their passages lack them. Probes have no part in any of
this.

Paper: Lee, Chang and Toutanova 2019, arXiv 1906.00300 (sentences of a passage as its questions).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorewright.errors import DataError
from lorewright.knowledge.data import trained_pairs
from lorewright.knowledge.near_misses import strangers
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.scoring import normalise
from lorewright.memory.folder import Folder
from lorewright.routing.gate import (
    BY_MEANING,
    N_CANDIDATES,
    Gate,
    HeldOut,
    Labelled,
    fit_gate,
    fit_gate_on,
)
from lorewright.routing.index import Hit, Index, Key, Part, Retriever

N_TRAINED = 400
"""At most so many trained questions are used for the calibration."""
N_STRANGERS = 400
"""At most so many questions that no memory is for."""
N_FOREIGN = 2
"""At most so many words that no key has are put into a question of the calibration."""
N_WORDS = 5
"""Fewest words of a sentence that stands for a question."""
TEXTS = ("passage", "title")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class _Case:
    """A text put as a question, the memories that hold its answer, and where it is from."""

    question: str
    memories: tuple[str, ...]
    answer: str
    passage: str = ""
    """Whose sentence it is; empty for a trained question."""

    @property
    def rest(self) -> str:
        """The passage without it."""
        return self.passage.replace(self.question, "").strip()


def fitted_gate(folder: Folder, by_id: Mapping[str, Any], index: Index) -> Gate | None:
    """Fit a folder's gate; None where nothing in it could be asked.

    `by_id` are the entries of memory.json by adapter id.
    """
    trained = list(_held_out(folder, by_id, index))
    # topics of strange subjects are the questions themselves in other words, where prose is long
    topics = [case.question for case in trained] if index.embed is None else []
    unrelated = _strangers(topics)
    try:
        if index.embed is None:
            return _by_words(index, trained, unrelated)
        return _by_meaning(index, trained, _every(folder, by_id, index), unrelated)
    except DataError:  # nothing trained by questions, and with an encoder no sentence either
        return None


def trained_questions(folder: Folder, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the questions that a memory was trained to answer, with the answers."""
    return trained_pairs(folder.lesson(entry).examples)


def _strangers(questions: Sequence[str]) -> list[str]:
    """Questions that no memory is for: packaged ones, and these topics of strange subjects."""
    packaged = unrelated_questions()
    packaged = packaged[: len(packaged) * 3 // 4]  # the rest are probes of every memory
    theirs = strangers(questions, packaged, n=N_STRANGERS - len(packaged), seed=0)
    unrelated = [*packaged, *theirs]
    random.Random("unrelated").shuffle(unrelated)
    return unrelated


def _held_out(folder: Folder, by_id: Mapping[str, Any], index: Index) -> Iterator[_Case]:
    """Trained questions, one of several with the same answer, the memories that have it, answers.

    Where an answer has one question only, that is used although the index has its words in other
    keys: the folder then knows no other way to ask.
    """
    rng = random.Random("calibration")
    ids = sorted(index.memories)
    rng.shuffle(ids)
    share = -(-N_TRAINED // max(1, len(ids)))
    having = _having(index)
    for identity in ids[:N_TRAINED]:
        groups: dict[str, list[str]] = {}
        with suppress(DataError):
            for question, answer in trained_questions(folder, by_id[identity]):
                groups.setdefault(answer, []).append(question)
        picked = rng.sample(sorted(groups), min(share, len(groups)))
        for answer in picked:
            question = rng.choice(groups[answer])
            memories = tuple(dict.fromkeys(having[normalise(question)]))
            yield _Case(question, memories, answer)


def _having(index: Index) -> dict[str, list[str]]:
    """Questions, normalised, and the memories that have each as a key."""
    having: dict[str, list[str]] = {}
    for key in index.keys:
        if key.kind == "question":
            having.setdefault(normalise(key.text), []).append(key.memory)
    return having


# -- by words ------------------------------------------------------------------------------------


def _by_words(index: Index, trained: Sequence[_Case], unrelated: Sequence[str]) -> Gate:
    left_out = {(case.question, memory) for case in trained for memory in case.memories}
    rest = (key for key in index.keys if (key.text, key.memory) not in left_out)
    without = Index.build(rest, tokenise=index.tokenise)
    retriever = _never_empty(partial(without.retrieve_memories, k=N_CANDIDATES))
    rng = random.Random("foreign words")
    cases = [HeldOut(_foreign(case.question, rng), case.memories) for case in trained]
    return fit_gate(retriever, cases, [_foreign(question, rng) for question in unrelated])


def _foreign(question: str, rng: random.Random) -> str:
    """The question with words before it that no key has."""
    added = (f"zz{rng.randrange(10**9)}" for _ in range(rng.randint(0, N_FOREIGN)))
    return " ".join([*added, question])


def _never_empty(retriever: Retriever) -> Retriever:
    """A question without any common word is as good as one with a wrong candidate that has none."""
    nobody = [Hit("", "", "question", 0.0, 1, {"bm25": Part(0.0, 1)})]
    return lambda question: retriever(question) or nobody


# -- by meaning ----------------------------------------------------------------------------------


def _by_meaning(
    index: Index, trained: Sequence[_Case], every: Sequence[_Case], unrelated: Sequence[str]
) -> Gate:
    asked = {key.memory for key in index.keys if key.kind == "question"}
    sentences = _sentences(index, asked)
    one_each = {case.passage: case for case in sentences}
    cases = [*trained, *(case for case in one_each.values() if case.rest)]
    texts = [case.question for case in (*trained, *every, *sentences)]
    whole = _knowing(index, [*texts, *unrelated])
    lacking = _lacking(whole, cases)
    find = partial(lacking.retrieve_memories, k=N_CANDIDATES)
    labelled: list[Labelled] = [(find(case.question), case.memories) for case in cases]
    labelled += [(find(case.question, kinds=TEXTS), case.memories) for case in trained]
    holds = _holding(whole)
    near = []
    for case in (*every, *sentences):
        others = [memory for memory in whole.memories if memory not in case.memories]
        hits = whole.retrieve_memories(case.question, k=N_CANDIDATES, memories=others)
        near.append([hit for hit in hits if not holds(hit.memory, case.answer)])
    strange = [find(question) for question in unrelated]
    return fit_gate_on(labelled, strange, [hits for hits in near if hits], parts=BY_MEANING)


def _knowing(index: Index, questions: Sequence[str]) -> Index:
    """The index with the vectors of these questions, computed together."""
    assert index.embed is not None
    texts = list(dict.fromkeys(questions))
    vector_ND = (index.embed_question or index.embed)(texts)
    row = {text: n for n, text in enumerate(texts)}

    def known(some: list[str]) -> NDArray[Any]:
        return np.asarray(vector_ND[[row[text] for text in some]])

    return replace(index, embed_question=known)


def _lacking(index: Index, cases: Sequence[_Case]) -> Index:
    """The index without what the cases ask."""
    gone = {(memory, case.passage or case.question) for case in cases for memory in case.memories}

    def left(key: Key) -> bool:
        """Not what is asked, nor a question and its answer as one passage."""
        begun = key.text.partition("?")[0] + "?"
        return (key.memory, key.text) not in gone and (
            key.kind != "passage" or (key.memory, begun) not in gone
        )

    rests = (Key(memory, case.rest) for case in cases if case.rest for memory in case.memories)
    return index.picked([n for n, key in enumerate(index.keys) if left(key)]).with_keys(rests)


def _every(folder: Folder, by_id: Mapping[str, Any], index: Index) -> list[_Case]:
    """Trained questions in all wordings, at most N_TRAINED, and the memories that have each."""
    having = _having(index)
    cases = {}
    rng = random.Random("near")
    for identity in rng.sample(index.memories, min(N_TRAINED, len(index.memories))):
        with suppress(DataError):
            for question, answer in trained_questions(folder, by_id[identity]):
                memories = tuple(dict.fromkeys(having[normalise(question)]))
                cases[question] = _Case(question, memories, answer)
    some = sorted(cases.values(), key=lambda case: case.question)
    return rng.sample(some, min(N_TRAINED, len(some)))


def _sentences(index: Index, asked: set[str]) -> list[_Case]:
    """Sentences of passages of the memories that were not asked anything, at most N_TRAINED."""
    cases = [
        _Case(sentence, (key.memory,), sentence, key.text)
        for key in index.keys
        if key.kind == "passage" and key.memory not in asked
        for sentence in _SENTENCE.split(key.text)
        if len(sentence.split()) >= N_WORDS
    ]
    return random.Random("sentences").sample(cases, min(N_TRAINED, len(cases)))


def _holding(index: Index) -> Callable[[str, str], bool]:
    """Whether a memory's own texts have an answer, so that it is no stranger to the question.

    Each text is normalised once, however many answers are looked for.
    """

    @cache
    def texts(memory: str) -> list[str]:
        return [normalise(key.text) for key in index.keys_of(memory) if key.kind == "passage"]

    def holds(memory: str, answer: str) -> bool:
        wanted = normalise(answer)
        return bool(wanted) and any(wanted in text for text in texts(memory))

    return holds
