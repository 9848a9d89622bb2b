"""What a model that reads the document would say: its likeliest next tokens, kept on disk.

Context distillation trains an adapter, without the document, towards the base with the document in
its prompt. Per completion token the K likeliest tokens of the teacher are kept;
`losses.distill_topk` compares with them and with the mass of all the rest. Irrelevant questions
have no document: their teacher is the base as it is, so the adapter learns to leave it alone there.

This room knows a Model, examples and rendered rows. It knows nothing of the loop.

Shape letters: M completion tokens of all rows, K teacher tokens kept, C completion token, B row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.errors import DataError, StorageError
from lorewright.files import digest
from lorewright.knowledge.data import Example
from lorewright.models.batching import by_length
from lorewright.models.model import Model, Rendered

TOP_K = 32
"""Teacher tokens kept per position; the rest counts as one."""
TEACHER_TOKENS = 4096
TEACHER = "teacher"
"""What the teacher would say, in a run's folder: begins the file's name."""


@dataclass(frozen=True)
class SoftTargets:
    """Teacher's K likeliest tokens at every completion token of the rows, in their order.

    ids_MK; logp_MK in nats; starts: where each row's tokens begin in M, and the end of the last.
    """

    ids_MK: Tensor
    logp_MK: Tensor
    starts: tuple[int, ...]

    def take(self, rows: Sequence[int], n_completion: int) -> tuple[Tensor, Tensor]:
        """ids_BCK and logp_BCK of some rows; beyond a row's end its last token is repeated."""
        at_C = torch.arange(n_completion)
        index = [
            (self.starts[i] + at_C).clamp(max=self.starts[i + 1] - 1) for i in rows
        ]  # masked there
        index_BC = torch.stack(index)
        return self.ids_MK[index_BC], self.logp_MK[index_BC]

    def save(self, path: Path, mark: str) -> None:
        """Write to a safetensors file, with the digest of what the teacher was asked.

        Raises StorageError when the disk refuses; nothing half-written is left.
        """
        tensors = {"ids": self.ids_MK, "logp": self.logp_MK, "starts": torch.tensor(self.starts)}
        part = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(dump_tensors(tensors, {"asked": mark}))
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise StorageError(
                f"what the teacher said could not be kept in {path.parent}: {error}; free some "
                "space and write again."
            ) from error

    @classmethod
    def load(cls, path: Path, mark: str) -> SoftTargets | None:
        """Read what `save` wrote; None when that cannot be read or was another question."""
        try:
            with safe_open(path, "pt") as file:
                if file.metadata()["asked"] != mark:
                    return None
                ids_MK, logp_MK, starts = (file.get_tensor(k) for k in ("ids", "logp", "starts"))
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        return cls(ids_MK, logp_MK, tuple(starts.tolist()))


@torch.no_grad()
def soft_targets(model: Model, informed: Sequence[Rendered], *, top_k: int = TOP_K) -> SoftTargets:
    """Ask the base, with what it may read in the prompt, for its K likeliest tokens per position.

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
        logits_BCV = model.completion_logits(model.batch([informed[i] for i in chosen]))
        top = logits_BCV.log_softmax(-1).topk(k, dim=-1)
        for row, i in enumerate(chosen):
            span = slice(starts[i], starts[i + 1])
            logp_MK[span] = top.values[row, : counts[i]].cpu()
            ids_MK[span] = top.indices[row, : counts[i]].cpu()
    return SoftTargets(ids_MK, logp_MK, tuple(starts))


def teach(
    model: Model,
    examples: Sequence[Example],
    contexts: Sequence[str],
    folder: Path | None,
    asked: dict[str, SoftTargets],
) -> SoftTargets:
    """The teacher's word on examples, each with its context before the prompt: asked once.

    It is looked for in `asked`, which it is put into, then in the folder, where it is kept. Raises
    DataError for an example without a prompt, or whose reply is tokenised in two ways.
    """
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
    tokens = [[*row.prompt_ids, -1, *row.completion_ids] for row in informed]
    mark = digest([model.digest, tokens])
    path = None if folder is None else folder / f"{TEACHER}-{mark[:12]}.safetensors"
    found = asked.get(mark) or (SoftTargets.load(path, mark) if path else None)
    if found is None:
        found = soft_targets(model, informed)
        if path is not None:
            found.save(path, mark)
    asked[mark] = found
    return found
