"""The shapes of rows that the field uses, in JSON, JSON lines and tables.

    SHAPES     shape of a row -> documents and facts; add one here

Column names count in any case; columns that a shape does not name are ignored; rows with a `weight`
of 0 are left out, with a note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lorewright.errors import DataError
from lorewright.knowledge.data import Document
from lorewright.knowledge.markdown import without_markup
from lorewright.knowledge.readers.cells import (
    Row,
    answers_of,
    as_text,
    child_rows,
    document_of,
    fact_of,
    is_given,
    is_weightless,
    optional_text,
    passage_of,
    text_in,
)
from lorewright.knowledge.readers.chats import chat, role_of, templated
from lorewright.knowledge.readers.items import Item

Shape = Callable[[Row], Iterable[Item] | None]
"""What a row of this shape holds; None for a row of another shape."""

_MEANT_FOR_A_SHAPE = {"question", "answer", "answers", "prompt", "completion", "instruction"}
_QUESTION_ANSWER = re.compile(
    r"\s*Question:\s*(?P<question>(?:(?!Question:|Answer:).)*?)\s*"
    r"Answer:(?P<answer>(?:(?!Question:|Answer:).)*)",
    re.DOTALL,
)


def items_of(rows: Iterable[Row]) -> Iterator[Item]:
    """What the rows hold, by the first shape that each has."""
    for row in rows:
        if is_weightless(row.values):
            yield Item("a row of weight 0 is not learnt", row.where)
            continue
        shaped = (shape(row) for shape in SHAPES.values())
        items = next((items for items in shaped if items is not None), None)
        if items is None:
            raise DataError(
                f"{row.where} has keys {', '.join(row.values) or 'none'}, which is no known shape; "
                f"use one of {'; '.join(SHAPES)}."
            )
        yield from items


def is_shaped(columns: Iterable[str]) -> bool:
    """Whether a table with these columns holds rows of a shape, or is meant to.

    A table with a question and no answer, or the other way round, is no table of something else.
    """
    names = [column.strip().lower() for column in columns]
    row = Row("", "row", "row", dict.fromkeys(names, "x"))
    try:
        shaped = any(shape(row) is not None for shape in SHAPES.values())
    except DataError:  # a column of the shape wants more than a text
        shaped = True
    return shaped or bool({*names} & _MEANT_FOR_A_SHAPE)


def question_and_answer(row: Row) -> Iterable[Item] | None:
    """question, answer or answers; if present aliases, paraphrases, id, source, and a context.

    The context is a document, as in flat SQuAD; without an answer its question is one that the
    context does not answer.
    """
    if "question" not in row.values or not {"answer", "answers"} & row.values.keys():
        return None
    question, answers = text_in(row, "question"), answers_of(row)
    if not is_given(row, "context"):
        return [fact_of(row, question, answers)]
    open_questions = [] if any(answers) and not _impossible(row) else [question]
    document = passage_of(row, "context", open_questions)
    source = document.content.id if isinstance(document.content, Document) else ""
    if open_questions:
        return [document]
    return [document, fact_of(row, question, answers, source=source)._replace(context=source)]


def query_and_target(row: Row) -> Iterable[Item] | None:
    """query and target, as in PhoneBook."""
    if not {"query", "target"} <= row.values.keys():
        return None
    return [fact_of(row, text_in(row, "query"), (text_in(row, "target"),))]


def prompt_and_completion(row: Row) -> Iterable[Item] | None:
    """prompt and completion, as texts or as chat messages; only the completion is learnt."""
    if not {"prompt", "completion"} <= row.values.keys():
        return None
    return _prompted(row, row.values["prompt"], "completion")


def chosen_and_rejected(row: Row) -> Iterable[Item] | None:
    """chosen and rejected, with or without a prompt, as for DPO: the chosen reply is learnt."""
    if not {"chosen", "rejected"} <= row.values.keys():
        return None
    chosen = row.values["chosen"]
    whole = isinstance(chosen, list) and any(role_of(each) == "user" for each in chosen)
    if whole or "prompt" not in row.values:
        messages = templated(chosen) if isinstance(chosen, str) else chosen
        return [*chat(row, messages), _rejected(row)]
    return [*_prompted(row, row.values["prompt"], "chosen"), _rejected(row)]


def _rejected(row: Row) -> Item:
    return Item("the rejected reply is not learnt", row.where)


def _prompted(row: Row, prompt: Any, key: str) -> list[Item]:
    reply = row.values[key]
    if isinstance(prompt, str) and isinstance(reply, list):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and isinstance(reply, str):
        reply = [{"role": "assistant", "content": reply}]
    if isinstance(prompt, list) and isinstance(reply, list):
        return chat(row, prompt + reply, n_given=len(prompt))
    return [fact_of(row, as_text(row, "prompt", prompt).strip(), (text_in(row, key),))]


def instruction_and_output(row: Row) -> Iterable[Item] | None:
    """instruction and output, as Alpaca has them; if present input and history."""
    if not {"instruction", "output"} <= row.values.keys():
        return None
    question = text_in(row, "instruction")
    if is_given(row, "input"):
        question += f"\n{text_in(row, 'input')}"
    turns = row.values.get("history") or []
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == 2 for t in turns):
        raise DataError(f"{row.where} has a history that is no list of pairs; repair it.")
    if not turns:
        return [fact_of(row, question, (text_in(row, "output"),))]
    turns = [*turns, [question, row.values["output"]]]
    roles = ("user", "assistant")
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(roles, turn, strict=True)
    ]
    return chat(row, messages)


def instruction_and_response(row: Row) -> Iterable[Item] | None:
    """instruction and response, as Dolly has them; a context is a document beside the fact."""
    if not {"instruction", "response"} <= row.values.keys():
        return None
    question, answers = text_in(row, "instruction"), (text_in(row, "response"),)
    if not is_given(row, "context"):
        return [fact_of(row, question, answers)]
    document = passage_of(row, "context", [])
    source = document.content.id if isinstance(document.content, Document) else ""
    return [document, fact_of(row, question, answers, source=source)]


def chat_messages(row: Row) -> Iterable[Item] | None:
    """messages: each reply of the assistant is a fact; see `_chat`."""
    return chat(row, row.values["messages"]) if "messages" in row.values else None


def conversations(row: Row) -> Iterable[Item] | None:
    """conversations of from and value, as ShareGPT has them: as messages."""
    return chat(row, row.values["conversations"]) if "conversations" in row.values else None


def text(row: Row) -> Iterable[Item] | None:
    """text: "Question: … Answer: …" and prompts of a template are facts, any other a document.

    A document may have title and meta; a row with meta is always a document.
    """
    if "text" not in row.values:
        return None
    content = as_text(row, "text", row.values["text"])
    meta = row.values.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"{row.where} has a meta of type {type(meta).__name__}; give an object.")
    if "meta" not in row.values:
        match = _QUESTION_ANSWER.fullmatch(content)
        if match:
            return [fact_of(row, match["question"].strip(), (match["answer"].strip(),))]
        if messages := templated(content):
            return chat(row, messages)
        content, left_out = without_markup(content)
        row = row._replace(values={**row.values, "text": content})
        notes = [Item(note, row.where) for note in left_out]
        if notes and not content.strip():
            return notes
        return [*notes, document_of(row, "text", title=optional_text(row, "title"), meta=meta)]
    return [document_of(row, "text", title=optional_text(row, "title"), meta=meta)]


def squad(row: Row) -> Iterable[Item] | None:
    """paragraphs, as in SQuAD: contexts with their facts; what they leave open goes to meta."""
    if "paragraphs" not in row.values:
        return None
    items = []
    for paragraph in child_rows(row, "paragraphs"):
        questions = list(child_rows(paragraph, "qas"))
        impossible = [qa for qa in questions if _impossible(qa)]
        meta = (
            {"unanswerable": [text_in(qa, "question") for qa in impossible]} if impossible else {}
        )
        document = document_of(paragraph, "context", title=optional_text(row, "title"), meta=meta)
        source = document.content.id if isinstance(document.content, Document) else ""
        items.append(document)
        items += [
            fact_of(qa, text_in(qa, "question"), answers_of(qa), source=source)._replace(
                context=source
            )
            for qa in questions
            if qa not in impossible
        ]
    return items


def _impossible(row: Row) -> bool:
    return str(row.values.get("is_impossible")).strip().lower() in ("true", "1")


SHAPES: dict[str, Shape] = {
    "SQuAD {data: [{paragraphs}]}": squad,
    "question+answer": question_and_answer,
    "query+target": query_and_target,
    "prompt+completion": prompt_and_completion,
    "chosen+rejected": chosen_and_rejected,
    "instruction+output": instruction_and_output,
    "instruction+response": instruction_and_response,
    "messages": chat_messages,
    "conversations": conversations,
    "text": text,
}
