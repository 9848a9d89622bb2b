"""Teacher-forced traces, what they certify, and the free-running audit beside them.

Greedy decoding reproduces an answer if and only if, teacher-forced, the argmax equals the target at
every position, the stop token included: up to the first mismatch both see the same prefix. So one
forward pass certifies exact recall; where every p exceeds a margin above 1/2, nothing else can win.
Free-running greedy decoding stays the headline: `audit` decodes wherever numerics could decide, and
counts where the two disagree.

Shape letters: B row, C completion token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.decoding import Progress
from lorewright.models.model import Model, Rendered
from lorewright.recall.statistics import Proportion, wilson
from lorewright.training.watch import Watch

SURE = 0.6
"""A token of more probability stays the likeliest, however a pass is batched."""


@dataclass(frozen=True)
class TokenTrace:
    """Teacher-forced record of one completion, stop token included."""

    p: tuple[float, ...]
    """Probability of each target token, given the true prefix."""
    right: tuple[bool, ...]
    """Whether each target token is the argmax."""

    @property
    def first_failure(self) -> int | None:
        """Position where greedy decoding leaves the target; None when it never does."""
        return next((i for i, right in enumerate(self.right) if not right), None)

    @property
    def stubborn(self) -> tuple[int, ...]:
        """Positions with p < 1/2: not safe, though they may be right."""
        return tuple(i for i, p in enumerate(self.p) if p < 0.5)

    @property
    def exact(self) -> bool:
        """Whether greedy decoding reproduces the completion."""
        return all(self.right)

    def certified(self, margin: float = 0.5) -> bool:
        """Whether every p exceeds `margin` (at least 1/2), so that no other token can win."""
        return self.exact and min(self.p, default=0.0) > margin


@torch.no_grad()
def trace(
    model: Model,
    rows: Sequence[Rendered],
    *,
    batch_tokens: int | None = None,
    progress: Progress = lambda done, total: None,
) -> list[TokenTrace]:
    """Score completions under teacher forcing, one forward pass each, in the order of `rows`.

    At most `batch_tokens` padded tokens at once; None = what suits the device. `progress` is called
    with the tokens done and all there are.
    """
    traces: dict[int, TokenTrace] = {}
    budget = batch_tokens or pass_tokens(model.device)
    done, total = 0, sum(map(len, rows))
    for chosen in by_length([len(row) for row in rows], budget):
        part = [rows[i] for i in chosen]
        nats_BC, right_BC = model.completion_nats(model.batch(part), model.sharing(part))
        for i, nats_C, right_C in zip(chosen, nats_BC.tolist(), right_BC.tolist(), strict=True):
            n = len(rows[i].completion_ids)
            traces[i] = TokenTrace(
                tuple(math.exp(-nats) for nats in nats_C[:n]), tuple(map(bool, right_C[:n]))
            )
        done += sum(len(rows[i]) for i in chosen)
        progress(done, total)
    return [traces[i] for i in range(len(rows))]


def reproduced(model: Model, examples: Sequence[Example]) -> Proportion:
    """The share of examples whose completion greedy decoding is certain to reproduce."""
    traces = trace(model, [model.render(e.prompt, e.completion) for e in examples])
    return wilson(sum(each.exact for each in traces), len(traces))


N_RIVALS = 3
"""Of the tokens that are likeliest in a place besides the one that is wanted."""


@dataclass(frozen=True)
class Token:
    """One token of a completion, under teacher forcing, with what else might stand there."""

    piece: str
    """Its text as it stands in the completion, with the space before it if it has one."""
    p: float
    right: bool
    """Whether it is the likeliest."""
    rivals: tuple[tuple[str, float], ...]
    """The likeliest others and their probabilities, likeliest first."""


@torch.no_grad()
def tokens(
    model: Model, rows: Sequence[Rendered], *, n_rivals: int = N_RIVALS
) -> list[tuple[Token, ...]]:
    """Completions token by token, stop token included, in the order of `rows`.

    Pieces joined give the completion, special tokens by name.
    """
    listed = []
    for row in rows:
        (logits_CV,) = model.completion_logits(model.batch([row]))
        p_CV, ids_C = logits_CV.softmax(-1), row.completion_ids
        best = p_CV.topk(min(n_rivals + 1, p_CV.shape[1]))
        own = []
        for at, target in enumerate(ids_C):
            places = zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True)
            ranked = [(i, p) for i, p in places if i != target][:n_rivals]
            rivals = tuple((_piece(model, [*ids_C[:at], i]), p) for i, p in ranked)
            right = int(logits_CV[at].argmax()) == target
            p = float(p_CV[at, target])
            own.append(Token(_piece(model, ids_C[: at + 1]), p, right, rivals))
        listed.append(tuple(own))
    return listed


def _piece(model: Model, ids: Sequence[int]) -> str:
    """The text that the last of these tokens adds."""
    whole, before = (
        str(model.tokenizer.decode(list(part), clean_up_tokenization_spaces=False))
        for part in (ids, ids[:-1])
    )
    return whole[len(before) :]


def certify(model: Model, examples: Sequence[Example], *, margin: float = 0.5) -> list[bool]:
    """Whether greedy decoding is certain to reproduce each completion: every p > `margin`.

    Raises ConfigError for a margin outside [0.5, 1).
    """
    if not 0.5 <= margin < 1:
        raise ConfigError(f"margin is {margin}; a certificate needs one in [0.5, 1).")
    rows = [model.render(e.prompt, e.completion) for e in examples]
    return [each.certified(margin) for each in trace(model, rows)]


@dataclass(frozen=True)
class Audit:
    """Free-running verdicts beside teacher-forced ones on the same examples."""

    n: int
    n_exact: int
    """Free-running greedy replies equal to the completion, token by token."""
    disagreements: tuple[int, ...]
    """Indices of examples where the two verdicts differ (near-ties that numerics can flip)."""

    @classmethod
    def of(cls, exact: Sequence[bool], traces: Sequence[TokenTrace]) -> Audit:
        """Compare whether each free-running reply was exact with the trace of the same example."""
        pairs = enumerate(zip(exact, traces, strict=True))
        return cls(len(exact), sum(exact), tuple(i for i, (a, t) in pairs if a != t.exact))

    @property
    def recall(self) -> Proportion:
        """Share reproduced exactly, free-running."""
        return wilson(self.n_exact, self.n)


def audit(model: Model, examples: Sequence[Example], *, watch: Watch | None = None) -> Audit:
    """Compare free-running replies with the completions and with teacher-forced verdicts.

    Where every token has p > SURE, greedy decoding has been decided: those are not decoded.
    """
    rows, watch = [model.render(e.prompt, e.completion) for e in examples], watch or Watch()
    traces = trace(model, rows, progress=watch.of("checking what was trained"))
    sure = [each.certified(SURE) for each in traces]
    unsure = [i for i, each in enumerate(sure) if not each]
    outputs = model.generate_ids(
        [rows[i].prompt_ids for i in unsure],
        max_new_tokens=[len(rows[i].completion_ids) for i in unsure],
        progress=watch.of("decoding what is not certain"),
    )
    # The last completion token is the stop, which the outputs lack.
    freely = {
        i: tuple(ids) == rows[i].completion_ids[:-1] for i, ids in zip(unsure, outputs, strict=True)
    }
    return Audit.of([freely.get(i, True) for i in range(len(rows))], traces)
