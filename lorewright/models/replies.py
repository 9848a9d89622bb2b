"""What a base writes about a passage by itself, ended where it begins to repeat itself."""

from __future__ import annotations

from collections.abc import Sequence

from lorewright.models.decoding import Progress, Sampling
from lorewright.models.model import Model

MAX_QUESTION_TOKENS = 512
"""Longest reply, in tokens, however long the passage."""
QUESTION_TOKENS = 64
"""What it may write about any passage; after so many tokens each its lines are compared."""
QUESTION_SHARE = 4
"""What it may write besides, as a multiple of the passage's tokens; complete replies need 2."""


def write_about(
    model: Model,
    prompts: list[str],
    *,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
    progress: Progress = lambda done, total: None,
) -> list[str]:
    """Return what the model replies by itself, ended where it repeats itself.

    Each prompt is a passage, an empty line and what to write about it. A reply ends as soon as it
    goes round in circles; every QUESTION_TOKENS, if its last line is one of those before; when it
    is as long as the passage allows. Otherwise as `Model.generate`.
    """
    limits = [_limit(model, prompt) for prompt in prompts]
    whole = [-(-limit // QUESTION_TOKENS) * QUESTION_TOKENS for limit in limits]

    def until(number: int, text: str, ids: Sequence[int]) -> str | None:
        return text if len(ids) % QUESTION_TOKENS == 0 and repeats(text) else None

    return model.generate(
        prompts,
        max_new_tokens=whole,
        stop=stop,
        until=until,
        end_loops=True,
        sampling=sampling,
        progress=progress,
    )


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
