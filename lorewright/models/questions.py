"""What a base writes about a passage when it asks itself questions: whole, and not without end.

Small bases sometimes go round in circles until the last token they may write. This room knows a
model and what it says; it knows nothing of lessons or of what the words are for.
"""

from __future__ import annotations

from lorewright.models.model import Model

MAX_QUESTION_TOKENS = 512
"""Longest reply when the base writes questions, in tokens, however long the passage."""
QUESTION_TOKENS = 64
"""What it may write about any passage; and so often it is looked at whether it still gets on."""
QUESTION_SHARE = 4
"""What it may write besides, as a multiple of the passage's tokens; complete replies need 2."""


def write_about(model: Model, prompts: list[str]) -> list[str]:
    """Return what the model replies by itself, ended only where it goes round in circles.

    Each prompt is a passage, an empty line and what to write about it. A reply that has not ended
    after QUESTION_TOKENS goes on with the others that have not, unless its last line is one of
    those before, or it is as long as the passage allows.
    """
    rows = [model.render(prompt).prompt_ids for prompt in prompts]
    limits = [_limit(model, prompt) for prompt in prompts]
    said: list[list[int]] = [[] for _ in rows]
    going = list(range(len(rows)))
    while going:
        texts = [[*rows[i], *said[i]] for i in going]
        parts = model.generate_ids(texts, max_new_tokens=QUESTION_TOKENS)
        for i, part in zip(going, parts, strict=True):
            said[i] += part
        full = [i for i, part in zip(going, parts, strict=True) if len(part) == QUESTION_TOKENS]
        room = [i for i in full if len(rows[i]) + len(said[i]) < model.context]
        going = [
            i for i in room if len(said[i]) < limits[i] and not _circles(model.decode(said[i]))
        ]
    return [model.decode(ids) for ids in said]


def _limit(model: Model, prompt: str) -> int:
    """How many tokens may be written about the passage that a prompt begins with."""
    passage = prompt.rpartition("\n\n")[0] or prompt
    n_tokens = len(model.tokenizer(passage, add_special_tokens=False)["input_ids"])
    return min(MAX_QUESTION_TOKENS, QUESTION_TOKENS + QUESTION_SHARE * n_tokens)


def _circles(text: str) -> bool:
    """Whether the last whole line stood there before; answers may, without their questions."""
    lines = [line.strip() for line in text.split("\n")[:-1]]
    asked = [line for line in lines if line and ("Q:" in line or "A:" not in line)]
    return bool(asked) and asked[-1] in asked[:-1]
