"""What a kit's states recall: documents that no kit has seen, the question alone, beside controls.

    own        the document's state, stored, read back, used on a base that is loaded anew
    other      the state of another document, under the same questions
    shuffled   a state of the document with its values permuted among its questions
    blank      the state of a text without facts
    untrained  the document's state with the kit as it was before training

Facts are the packaged test documents', as lines of question and answer; the questions have a form
that neither the base nor any kit was trained on. Nothing of the document is in the prompt. A reply
is right as `recall` scores it. McNemar's test compares with `other`, and an interval that knows
that questions come in documents stands beside the difference.

Knows the test documents and writers; knows nothing of how a kit was trained.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorewright.adapters.adapter import HALVES
from lorewright.files import load_jsonl
from lorewright.kits.stream import TEST_DOCUMENTS
from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.knowledge.scoring import METRICS
from lorewright.models.model import Model
from lorewright.recall.statistics import clustered_interval, mcnemar, wilson
from lorewright.training.config import WriteConfig
from lorewright.training.watch import Watch
from lorewright.writers.kit import Kit
from lorewright.writers.methods import LEARNED, load_state, writer_of
from lorewright.writers.writer import Material

OWN, OTHER, SHUFFLED, BLANK, UNTRAINED = "own", "other", "shuffled", "blank", "untrained"
ARMS = (OWN, OTHER, SHUFFLED, BLANK, UNTRAINED)
SIZES = (1, 2, 4, 8)
FORM = "new"
"""The question form of the test documents that is put."""
NEUTRAL = Knowledge((Document("neutral", "This page was left empty on purpose."),))


@dataclass(frozen=True)
class Row:
    """What one arm recalls of documents of one size."""

    n_facts: int
    arm: str
    n: int
    """Questions."""
    recall: float
    low: float
    high: float
    p: float | None = None
    """McNemar's, of `own` against `other` on the same questions."""
    above: tuple[float, float, float] | None = None
    """Recall of `own` less that of `other`: mean, low and high, resampled by document."""


@dataclass(frozen=True)
class _Source:
    knowledge: Knowledge
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def sources_of(n_facts: int, n_documents: int) -> list[_Source]:
    """The first facts of as many test documents."""
    sources = []
    for row in load_jsonl(TEST_DOCUMENTS)[:n_documents]:
        rows = row["facts"][:n_facts]
        facts = [Fact(f"{row['id']}-{i}", f["question"], f["answer"]) for i, f in enumerate(rows)]
        answers = tuple(fact.answer for fact in facts)
        questions = tuple(f[FORM] for f in rows)
        sources.append(_Source(Knowledge((), tuple(facts)), questions, answers))
    return sources


def permuted(source: _Source, seed: str) -> Knowledge:
    """The facts with every answer at another question; one fact has no other place."""
    facts, rng = source.knowledge.facts, random.Random(seed)
    by = rng.randrange(1, len(facts)) if len(facts) > 1 else 0
    moved = [replace(f, answer=facts[(i + by) % len(facts)].answer) for i, f in enumerate(facts)]
    return Knowledge((), tuple(moved))


def examined(
    model: Model,
    kit: Kit,
    reopen: Callable[[], Model],
    *,
    n_documents: int = 40,
    sizes: Sequence[int] = SIZES,
    watch: Watch | None = None,
) -> list[Row]:
    """Recall of every arm at every size. `reopen` loads the base anew for the questions.

    States are written with `model`, stored, and read with the other one, so that nothing of the
    writing process is left but files.
    """
    watch, rows = watch or Watch(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "kit.safetensors"
        kit.save(path)
        untrained = folder / "untrained.safetensors"
        as_before_training(model, kit).save(untrained)
        for size in sizes:
            sources = sources_of(size, n_documents)
            for n, source in enumerate(sources):
                _write(model, kit.method, path, source.knowledge, folder / f"{size}-{n}")
                if size > 1:
                    moved = permuted(source, f"{size}/{n}")
                    _write(model, kit.method, path, moved, folder / f"{size}-{n}-{SHUFFLED}")
                _write(
                    model,
                    kit.method,
                    untrained,
                    source.knowledge,
                    folder / f"{size}-{n}-{UNTRAINED}",
                )
                watch.advance("writing", n + 1, len(sources), f"documents of {size} facts")
            _write(model, kit.method, path, NEUTRAL, folder / BLANK)
            asking = reopen()
            scores = {arm: _asked(asking, sources, size, arm, folder, watch) for arm in ARMS}
            rows += _rows(size, {arm: each for arm, each in scores.items() if each})
    return rows


def as_before_training(model: Model, kit: Kit) -> Kit:
    """The kit of the same options before its first step."""
    import torch

    start = LEARNED[kit.method].start(model, kit.options, torch.Generator().manual_seed(0))
    return replace(kit, tensors=start, about={})


def without_its_start(model: Model, kit: Kit) -> Kit:
    """The kit with random A and zero B in the place of its first A and B; all else as learnt.

    Of a method without a first A and B it is the kit as it was.
    """
    plain = as_before_training(model, kit).tensors
    tensors = {name: plain[name] if name.endswith(HALVES) else w for name, w in kit.tensors.items()}
    return replace(kit, tensors=tensors, about={})


def _write(model: Model, method: str, kit: Path, knowledge: Knowledge, folder: Path) -> None:
    writer = writer_of(method, WriteConfig(kit=str(kit)))
    state, _ = writer.write(model, Material(knowledge), seed=0, run=None, watch=Watch())
    state.save(folder, {})


def _asked(
    model: Model, sources: Sequence[_Source], size: int, arm: str, folder: Path, watch: Watch
) -> list[list[float]]:
    """Right or wrong, by source and question; nothing where the arm has no meaning."""
    if arm == SHUFFLED and size == 1:
        return []
    score, result = METRICS["exact_match"], []
    for n, source in enumerate(sources):
        name = {
            OWN: f"{size}-{n}",
            OTHER: f"{size}-{(n + 1) % len(sources)}",
            BLANK: BLANK,
        }.get(arm, f"{size}-{n}-{arm}")
        with load_state(folder / name).on(model):
            replies = model.generate(source.questions, max_new_tokens=24)
        pairs = zip(replies, source.answers, strict=True)
        result.append([float(score(reply, (answer,))) for reply, answer in pairs])
        watch.advance("asking", n + 1, len(sources), f"{arm}, {size} facts")
    return result


def _rows(size: int, scores: Mapping[str, list[list[float]]]) -> list[Row]:
    rows = []
    for arm, by_source in scores.items():
        flat = [score for each in by_source for score in each]
        share = wilson(round(sum(flat)), len(flat))
        p = above = None
        if arm == OWN:
            other = [score for each in scores[OTHER] for score in each]
            p = mcnemar(
                sum(a > b for a, b in zip(flat, other, strict=True)),
                sum(a < b for a, b in zip(flat, other, strict=True)),
            )
            gaps = [
                [a - b for a, b in zip(own, off, strict=True)]
                for own, off in zip(by_source, scores[OTHER], strict=True)
            ]
            gap = clustered_interval(gaps)
            above = (gap.mean or 0.0, gap.low or 0.0, gap.high or 0.0)
        spread = (share.mean or 0.0, share.low or 0.0, share.high or 0.0)
        rows.append(Row(size, arm, share.n, *spread, p, above))
    return rows


def on_card(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain data for a kit's card, to five digits."""
    return [
        {
            key: float(f"{value:.5g}") if isinstance(value, float) else value
            for key, value in asdict(row).items()
            if value is not None
        }
        for row in rows
    ]
