"""What a base writes about a passage by itself: pairs on request, or questions for values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lorewright.models.backends.backend import Pass
from lorewright.models.backends.reduced import Reduced
from lorewright.models.batching import by_length, n_first_alike, pass_tokens
from lorewright.models.decoding import Progress, Sampling
from lorewright.models.model import Model, Rendered
from lorewright.models.templates import conversation

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


# --- questions for values -----------------------------------------------------------------------

WORDING = Sampling(temperature=0.6, top_p=0.95)
WORDING_TOKENS = 40
"""Longest question."""


@dataclass(frozen=True)
class BaseOf:
    """A model as self-study wants it: it goes on conversations and reads questions back."""

    model: Model
    reduced: Reduced | None = None
    """Frozen weights in bfloat16 with which it drafts and reads back; None = with its own."""

    def continue_turns(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], n_samples: int
    ) -> list[list[str]]:
        """Replies to each prompt behind the turns of a conversation, up to the end of a line.

        They end behind a question mark as well, and are drawn with a fixed seed.
        """
        model = self.model
        rows = self._after(turns, prompts, mark="Question")

        def ended(number: int, ids: list[int]) -> bool:
            text = str(model.tokenizer.decode(ids, skip_special_tokens=True)).lstrip()
            return "?" in text or "\n" in text

        replies = model.generate_ids(
            rows,
            max_new_tokens=WORDING_TOKENS,
            sampling=replace(WORDING, n=n_samples),
            ends=ended,
            reduced=self.reduced,
        )
        texts = [model.decode(ids) for ids in replies]
        return [texts[i * n_samples : (i + 1) * n_samples] for i in range(len(rows))]

    def _after(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], mark: str
    ) -> list[list[int]]:
        """The tokens of each prompt behind some turns, up to the reply."""
        tokenizer = self.model.tokenizer
        texts = [conversation(tokenizer, self.model.name, turns, p, mark=mark) for p in prompts]
        plain = tokenizer.chat_template is None
        return [list(tokenizer(text, add_special_tokens=plain)["input_ids"]) for text in texts]

    @torch.no_grad()
    def least_probabilities(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        """For each prompt behind some turns, and answer, the probability of its least likely token.

        The stop token does not count. What prompts have in common at their beginning runs once.
        """
        model, plain = self.model, self.model.tokenizer.chat_template is None
        prompt_ids = self._after(turns, prompts, mark="Answer")
        texts = [f" {answer}" if plain else answer for answer in answers]
        answer_ids = [model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        rows = [Rendered(tuple(p), tuple(a)) for p, a in zip(prompt_ids, answer_ids, strict=True)]
        heads: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            heads.setdefault(prompt.rpartition("\n")[0], []).append(i)
        least = [0.0] * len(rows)
        for group in heads.values():
            for i, p in zip(group, self._least([rows[i] for i in group]), strict=True):
                least[i] = p
        return least

    def _least(self, rows: Sequence[Rendered]) -> list[float]:
        least = [0.0] * len(rows)
        for chosen in by_length([len(row) for row in rows], pass_tokens(self.model.device)):
            part = [rows[i] for i in chosen]
            n_shared = n_first_alike([row.prompt_ids for row in part])
            pass_ = Pass(n_shared=n_shared, reduced=self.reduced)
            nats_BC, _ = self.model.completion_nats(self.model.batch(part), pass_)
            for i, row, nats_C in zip(chosen, part, nats_BC.tolist(), strict=True):
                answer = nats_C[: len(row.completion_ids)]
                least[i] = math.exp(-max(answer, default=0.0))
        return least
