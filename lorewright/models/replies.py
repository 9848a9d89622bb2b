"""What a base writes about a passage by itself, ended where it begins to repeat itself."""

from __future__ import annotations

from lorewright.models.model import Model

MAX_QUESTION_TOKENS = 512
"""Longest reply, in tokens, however long the passage."""
QUESTION_TOKENS = 64
"""What it may write about any passage; after so many tokens each it is checked for repetition."""
QUESTION_SHARE = 4
"""What it may write besides, as a multiple of the passage's tokens; complete replies need 2."""


def write_about(model: Model, prompts: list[str]) -> list[str]:
    """Return what the model replies by itself, ended where it repeats itself.

    Each prompt is a passage, an empty line and what to write about it. A reply that has not ended
    after QUESTION_TOKENS goes on with the others that have not, unless its last line is one of
    those before, or it is as long as the passage allows.
    """
    rows = [model.render(prompt).prompt_ids for prompt in prompts]
    limits = [_limit(model, prompt) for prompt in prompts]
    replies: list[list[int]] = [[] for _ in rows]
    going = list(range(len(rows)))
    while going:
        texts = [[*rows[i], *replies[i]] for i in going]
        parts = model.generate_ids(texts, max_new_tokens=QUESTION_TOKENS)
        for i, part in zip(going, parts, strict=True):
            replies[i] += part
        full = [i for i, part in zip(going, parts, strict=True) if len(part) == QUESTION_TOKENS]
        going = [
            i
            for i in full
            if len(rows[i]) + len(replies[i]) < model.context
            and len(replies[i]) < limits[i]
            and not repeats(model.decode(replies[i]))
        ]
    return [model.decode(ids) for ids in replies]


def _limit(model: Model, prompt: str) -> int:
    """How many tokens may be written about the passage that a prompt begins with."""
    passage = prompt.rpartition("\n\n")[0] or prompt
    n_tokens = len(model.tokenizer(passage, add_special_tokens=False)["input_ids"])
    return min(MAX_QUESTION_TOKENS, QUESTION_TOKENS + QUESTION_SHARE * n_tokens)


def repeats(text: str) -> bool:
    """Whether the last whole line stood there before; answers may, without their questions."""
    lines = [line.strip() for line in text.split("\n")[:-1]]
    questions = [line for line in lines if line and ("Q:" in line or "A:" not in line)]
    return bool(questions) and questions[-1] in questions[:-1]
