"""Claims about soft targets: the teacher's log-probabilities, row by row, kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import llama
from support.models import letters

from lorewright.errors import DataError
from lorewright.models.model import Model, Rendered
from lorewright.training.distil import SoftTargets, soft_targets
from lorewright.training.objectives import distill_topk

TEXTS = [("red 48\n\nCode of red?", "48"), ("Who?", "nobody at all"), ("x\n\nTeal?", "KX")]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(llama(), letters(), "tiny")


@pytest.fixture(scope="module")
def rows(model: Model) -> list[Rendered]:
    return [model.render(*text) for text in TEXTS]


def test_they_are_the_teachers_likeliest_tokens_row_by_row(
    model: Model, rows: list[Rendered]
) -> None:
    found = soft_targets(model, rows, top_k=5)
    for i, row in enumerate(rows):
        with torch.no_grad():
            logp = model.completion_logits(model.batch([row]))[0].log_softmax(-1)
        n = len(row.completion_ids)
        ids, kept = found.take([i], n)
        torch.testing.assert_close(kept[0], logp[:n].topk(5).values, atol=1e-5, rtol=0)
        torch.testing.assert_close(logp[:n].gather(1, ids[0]), kept[0], atol=1e-5, rtol=0)


def test_a_student_that_is_the_teacher_is_at_no_distance(
    model: Model, rows: list[Rendered]
) -> None:
    batch = model.batch(rows)
    ids, logp = soft_targets(model, rows).take([0, 1, 2], batch.mask_BC.shape[1])
    with torch.no_grad():
        distance = distill_topk(model.completion_logits(batch), ids, logp)
    assert (distance * batch.mask_BC).abs().max() < 1e-4


def test_what_is_saved_comes_back_only_to_the_same_question(
    model: Model, rows: list[Rendered], tmp_path: Path
) -> None:
    made, path = soft_targets(model, rows, top_k=3), tmp_path / "run" / "teacher.safetensors"
    made.save(path, "asked")
    again = SoftTargets.load(path, "asked")
    assert again is not None and again.starts == made.starts
    assert torch.equal(again.ids_MK, made.ids_MK) and torch.equal(again.logp_MK, made.logp_MK)
    assert SoftTargets.load(path, "another") is None
    path.write_bytes(b"broken")
    assert SoftTargets.load(path, "asked") is None


def test_a_row_without_a_completion_is_refused(model: Model) -> None:
    with pytest.raises(DataError, match="row 0 has no completion"):
        soft_targets(model, [model.render("Who?")])
