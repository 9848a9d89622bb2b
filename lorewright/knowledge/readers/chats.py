"""Chats into facts: messages, and prompts of a template that hold a chat as one text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lorewright.errors import DataError
from lorewright.knowledge.readers.cells import Row, as_text, fact_of, is_weightless, optional_text
from lorewright.knowledge.readers.items import Item

N_TURNS_BEFORE = 3
"""At most so many earlier turns of a chat stand before the question of a later one."""
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "function_call", "observation"), "tool"),
}
_TEMPLATES = tuple(
    re.compile(template, re.MULTILINE)
    for template in (
        r"^### ?(?:(?P<user>Instruction|Human|User|Question)"
        r"|(?P<assistant>Response|Assistant|Answer)|(?P<system>System)) ?:",
        r"<\|im_start\|>(?:(?P<user>user)|(?P<assistant>assistant)|(?P<system>system))\n",
        r"<\|start_header_id\|>(?:(?P<user>user)|(?P<assistant>assistant)|(?P<system>system))"
        r"<\|end_header_id\|>",
        r"<start_of_turn>(?:(?P<user>user)|(?P<assistant>model))\n",
        r"(?P<user>\[INST\])|(?P<assistant>\[/INST\])",
        r"^(?:(?P<user>USER|Human|User)|(?P<assistant>ASSISTANT|Assistant)|(?P<system>SYSTEM)): ?",
    )
)
"""Marks of turns in prompts that are written as one text, of the templates in use."""
_TURN_ENDS = re.compile(r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|endoftext\|>|</?s>|<bos>")


def templated(text: str) -> list[dict[str, str]] | None:
    """The messages of a text that is a chat in one of the templates; None for other texts."""
    for template in _TEMPLATES:
        marks = list(template.finditer(text))
        roles = [str(mark.lastgroup) for mark in marks]
        if ("user", "assistant") not in pairwise(roles):
            continue
        ends = [*(mark.start() for mark in marks[1:]), len(text)]
        parts = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
        lead = [("system", text[: marks[0].start()])]
        return [
            {"role": role, "content": bare}
            for role, part in [*lead, *zip(roles, parts, strict=True)]
            if (bare := re.sub(r"\n*### ?Input ?:\s*", "\n", _TURN_ENDS.sub("", part)).strip())
        ]
    return None


def role_of(message: Any) -> str:
    """The role of a message, by the name that we give it."""
    name = message.get("role", message.get("from")) if isinstance(message, dict) else None
    return _ROLES.get(str(name).lower(), str(name))


def chat(row: Row, messages: object, *, n_given: int = 0) -> list[Item]:
    """One fact for each reply: its question is the user's, after the turns before it.

    The question of a later turn is a fact without those as well, unless the source answers the same
    words otherwise. Not learnt: the first `n_given` messages, replies of weight 0, what the system
    and tools say.
    """
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise DataError(f"{row.where} has chat messages that are no list of objects; give a list.")
    items: list[Item] = []
    before: list[tuple[str, str]] = []
    question: list[str] = []
    for n, message in enumerate(messages):
        role, content = role_of(message), _content(row, message)
        if role not in ("user", "assistant") or not content:
            what = f"a message of the {role}" if content or role == "tool" else "a call of a tool"
            items.append(Item(f"{what} is not learnt", row.where))
        elif role == "user":
            question.append(content)
        elif not question:
            items.append(Item("a reply before the first question is not learnt", row.where))
        else:
            asked = "\n".join(question)
            if n >= n_given and is_weightless(message):
                items.append(Item("a reply of weight 0 is not learnt", row.where))
            elif n >= n_given:
                items += _turn(row, before, asked, content)
            before, question = [*before, (asked, content)], []
    if question and before:
        items.append(Item("a question without a reply is not learnt", row.where))
    if not before:
        roles = ", ".join(map(role_of, messages)) or "nobody"
        raise DataError(
            f"{row.where} has messages of {roles}; one of the user and then one of the assistant "
            "are needed."
        )
    return items


def _turn(row: Row, before: list[tuple[str, str]], question: str, answer: str) -> list[Item]:
    """The facts of one reply; the row's own id is that of the first."""
    if not before:
        return [fact_of(row, question, (answer,))]
    numbered = row._replace(
        name=f"{row.name}-turn-{len(before) + 1}",
        values={key: value for key, value in row.values.items() if key == "source"},
    )
    if own := optional_text(row, "id"):
        numbered = numbered._replace(name=f"{own}-turn-{len(before) + 1}")
    history = "\n".join(part for turn in before[-N_TURNS_BEFORE:] for part in turn)
    alone = numbered._replace(name=f"{numbered.name}-alone")
    return [
        fact_of(numbered, f"{history}\n{question}", (answer,)),
        fact_of(alone, question, (answer,))._replace(if_unique=True),
    ]


def _content(row: Row, message: Mapping[str, Any]) -> str:
    """The text of a message, of its parts if it has several; raises DataError for other media."""
    content = message.get("content", message.get("value"))
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise DataError(f"{row.where} has a message part of type {kind}; only text is read.")
        texts.append(part.get("text", part.get(kind)) if isinstance(part, dict) else part)
    return "\n".join(as_text(row, "content", each) for each in texts).strip()
