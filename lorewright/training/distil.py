"""Context distillation: be, without the document, as the base is that reads it.

Per completion token the teacher's K likeliest next tokens are stored, and the mass of all others
counts as one. A question without a context has the plain base as its teacher, so the adapter learns
to leave it alone there.

Knows a Model, examples and rendered rows; knows nothing of the loop.

Shape letters: M completion tokens of all rows, K teacher tokens stored, B row, C completion token,
T token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.adapters.lora import Rows
from lorewright.errors import DataError
from lorewright.files import digest, store
from lorewright.knowledge.data import Example
from lorewright.models.backends.backend import Pass
from lorewright.models.batching import by_length, n_first_alike
from lorewright.models.model import Model, Rendered
from lorewright.training.recent import Recent

TOP_K = 32
"""Teacher tokens stored per position."""
TEACHER_TOKENS = 4096
"""Padded tokens of a pass of the teacher, at most."""
TEACHER = "teacher"
"""Begins the name of the file in a run's folder that holds the teacher's predictions."""


def distill_topk(student_logits_BTV: Tensor, top_ids_BTK: Tensor, top_logp_BTK: Tensor) -> Tensor:
    """KL(teacher || student) per token, in nats, on the teacher's K best tokens and all the rest.

    KL_t = sum_{v in K} T(v) (log T(v) - log S(v)) + T_rest (log T_rest - log S_rest), where S is
    the student's full softmax and rest = 1 - sum over K. Zero when the K probabilities agree.
    Departure: the published top-K loss has no rest term, and so removes the tail's mass.

    Shapes: (B, T, V), (B, T, K) ids, (B, T, K) teacher log-probabilities -> (B, T), float32.
    Source: context distillation as in Doc-to-LoRA, arXiv 2602.15902.
    """
    logits_BTV = student_logits_BTV.float()
    top_BTK = top_logp_BTK.detach().float().exp()
    norm_BT1 = logits_BTV.logsumexp(-1, keepdim=True)
    student_BTK = logits_BTV.gather(-1, top_ids_BTK) - norm_BT1
    kl_BT = (torch.special.xlogy(top_BTK, top_BTK) - top_BTK * student_BTK).sum(-1)
    if top_ids_BTK.shape[-1] == logits_BTV.shape[-1]:
        return kl_BT
    rest_BT = (1 - top_BTK.sum(-1)).clamp(min=0.0)
    others_BTV = logits_BTV.scatter(-1, top_ids_BTK, -torch.inf)
    student_rest_BT = others_BTV.logsumexp(-1) - norm_BT1.squeeze(-1)
    return kl_BT + torch.special.xlogy(rest_BT, rest_BT) - rest_BT * student_rest_BT


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's K likeliest tokens at every completion token of the rows, in their order.

    ids_MK; logp_MK in nats; starts: where each row's tokens begin in M, and the end of the last.
    """

    ids_MK: Tensor
    logp_MK: Tensor
    starts: tuple[int, ...]

    def cover(self, examples: Sequence[int]) -> bool:
        """All."""
        return True

    def costs(self, logits_BCV: Tensor, examples: Sequence[int], nats_BC: Tensor) -> Tensor:
        """The student's distance to the teacher at every completion token (B, C), in nats."""
        ids_BCK, logp_BCK = self.take(examples, logits_BCV.shape[1])
        device = logits_BCV.device
        return distill_topk(logits_BCV, ids_BCK.to(device), logp_BCK.to(device))

    def take(self, rows: Sequence[int], n_completion: int) -> tuple[Tensor, Tensor]:
        """ids_BCK and logp_BCK of some rows; beyond a row's end its last token is repeated."""
        start_B, end_B = (torch.tensor([self.starts[i + k] for i in rows]) for k in (0, 1))
        at_BC = start_B[:, None] + torch.arange(n_completion)
        index_BC = torch.minimum(at_BC, end_B[:, None] - 1)
        return self.ids_MK[index_BC], self.logp_MK[index_BC]

    def save(self, path: Path) -> None:
        """Write to a safetensors file, whole or not at all; raises StorageError."""
        starts = torch.tensor(self.starts)
        store(dump_tensors({"ids": self.ids_MK, "logp": self.logp_MK, "starts": starts}), path)

    @classmethod
    def load(cls, path: Path) -> SoftTargets | None:
        """Read what `save` wrote; None when there is nothing that can be read."""
        try:
            tensors = load_file(path)
            return cls(tensors["ids"], tensors["logp"], tuple(tensors["starts"].tolist()))
        except (OSError, SafetensorError, KeyError):
            return None


@dataclass(frozen=True)
class SomeTargets:
    """Soft targets of some examples; the others are learnt from their completions."""

    soft: SoftTargets
    place: Mapping[int, int]
    """Of an example with targets, which of the rows of `soft` it is."""

    def cover(self, examples: Sequence[int]) -> bool:
        """Whether any of these has targets."""
        return any(i in self.place for i in examples)

    def costs(self, logits_BCV: Tensor, examples: Sequence[int], nats_BC: Tensor) -> Tensor:
        """The distance to the teacher (B, C) where there is one, else `nats_BC`."""
        taught = [row for row, i in enumerate(examples) if i in self.place]
        if not taught:
            return nats_BC
        own = [self.place[examples[row]] for row in taught]
        index = torch.tensor(taught, device=logits_BCV.device)
        cost_BC = self.soft.costs(logits_BCV[index], own, nats_BC[index])
        return nats_BC.index_copy(0, index, cost_BC.to(nats_BC.dtype))


@torch.no_grad()
def soft_targets(model: Model, informed: Sequence[Rendered], *, top_k: int = TOP_K) -> SoftTargets:
    """The base's K likeliest tokens per completion token, whatever adapters are attached.

    `informed` are the rows of the write with their documents before the prompts. Raises DataError
    when a row has no completion.
    """
    empty = [i for i, row in enumerate(informed) if not row.completion_ids]
    if empty:
        raise DataError(f"row {empty[0]} has no completion to distil; give every example one.")
    counts = [len(row.completion_ids) for row in informed]
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    k = min(top_k, int(model.network.config.get_text_config().vocab_size))
    ids_MK = torch.zeros(starts[-1], k, dtype=torch.long)
    logp_MK = torch.zeros(starts[-1], k)
    for chosen in by_length([len(row) for row in informed], TEACHER_TOKENS):
        part = [informed[i] for i in chosen]
        n_shared = n_first_alike([row.prompt_ids for row in part])
        base_alone = Pass(Rows(torch.tensor([-1])), n_shared=n_shared)
        logits_BCV = model.completion_logits(model.batch(part), base_alone)
        top = logits_BCV.log_softmax(-1).topk(k, dim=-1)
        for row, i in enumerate(chosen):
            span = slice(starts[i], starts[i + 1])
            logp_MK[span] = top.values[row, : counts[i]].cpu()
            ids_MK[span] = top.indices[row, : counts[i]].cpu()
    return SoftTargets(ids_MK, logp_MK, tuple(starts))


def teach(
    model: Model, examples: Sequence[Example], contexts: Sequence[str], run: Path | None
) -> SoftTargets:
    """Soft targets of the base that reads each example's context before its prompt.

    With a run folder they are stored there and read back. Raises DataError unless there is a
    context for each example, or for an example without a prompt or whose completion is tokenised
    differently after the context.
    """
    if len(contexts) != len(examples):
        raise DataError(
            f"distill needs one context for each of {len(examples)} examples (an empty one is no "
            f"document); got {len(contexts)}; give `contexts`."
        )
    informed = []
    for context, example in zip(contexts, examples, strict=True):
        prompt = f"{context}\n\n{example.prompt}" if context else example.prompt
        informed.append(model.render(prompt, example.completion))
        plain = model.render(example.prompt, example.completion)
        if not example.prompt or plain.completion_ids != informed[-1].completion_ids:
            raise DataError(
                "distill compares replies to the same prompt with and without a document; "
                f"{example.completion[:40]!r} has no prompt or is tokenised in two ways; give "
                "it a prompt, or use another objective for this view."
            )
    if run is None:
        return soft_targets(model, informed)
    tokens = [[*row.prompt_ids, -1, *row.completion_ids] for row in informed]
    path = run / f"{TEACHER}-{digest([model.digest, tokens])[:16]}.safetensors"
    stored = SoftTargets.load(path)
    if stored is None:
        stored = soft_targets(model, informed)
        stored.save(path)
    return stored


def remind(model: Model, examples: Sequence[Example], rehearsed: Sequence[int]) -> SomeTargets:
    """Soft targets of what is rehearsed: all that the plain base would have said there.

    Raises DataError for one without a completion.
    """
    rows = tuple(model.render(examples[i].prompt, examples[i].completion) for i in rehearsed)
    key = (model.digest, model.loaded_as, model.dtype, rows)
    soft = _REMINDED.get(key, lambda: soft_targets(model, rows))
    return SomeTargets(soft, {i: row for row, i in enumerate(rehearsed)})


_REMINDED: Recent[SoftTargets] = Recent(64 << 20, lambda soft: soft.ids_MK.nbytes)
"""The last soft targets of this process."""
