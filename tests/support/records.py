"""Records as they are stored: the demonstration, a verdict, a card, a merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorewright.recall.statistics import wilson
from lorewright.recall.verify import Recall, RecallReport


def row(name: str, n_right: int, n: int = 108, final_loss: float | None = None) -> dict[str, Any]:
    found = wilson(n_right, n)
    return {
        "name": name,
        "meaning": f"what {name} means",
        "n": n,
        "recall": found.mean,
        "low": found.low,
        "high": found.high,
        "final_loss": final_loss,
    }


def record(**changes: Any) -> dict[str, Any]:
    """A plausible demonstration: both losses fall, and one of the two can be recalled."""
    epochs = list(range(1, 41))
    text = {
        "epoch": epochs,
        "loss": [0.012 + 2.9 * 0.9**e for e in epochs],
        "recall": [0.0 for _ in epochs],
    }
    asked = {
        "epoch": epochs[:30],
        "loss": [0.006 + 2.2 * 0.85**e for e in epochs[:30]],
        "recall": [0.94 / (1 + 1.5 ** (12 - e)) for e in epochs[:30]],
    }
    return {
        "title": "One handbook, two ways",
        "n_probes": 108,
        "rows": [
            row("stable", 1),
            row("write: next token", 0, final_loss=0.055),
            row("write: questions and answers", 101, final_loss=0.0228),
            row("full", 105),
        ],
        "extra": [row("wrong memory", 0), row("nothing scored", 0, 0)],
        "curves": {"next token": text, "questions and answers": asked},
        "seconds": 97.3,
        "commands": ["lore demo"],
        **changes,
    }


def outcomes(kind: str, n_right: int, n: int, n_unscored: int = 0) -> tuple[Recall, ...]:
    """Replies to probes of a kind, the right ones first, the unscored ones last."""
    scores: list[float | None] = [1.0] * n_right + [0.0] * (n - n_right) + [None] * n_unscored
    return tuple(
        Recall(f"{kind}-{i}", kind, "Who?", ("Anna",), "Anna", score)
        for i, score in enumerate(scores)
    )


def verdict(**arms: Sequence[Recall]) -> dict[str, Any]:
    """A verdict as it is stored; by default with two kinds of probe and two controls."""
    usual: dict[str, Sequence[Recall]] = {
        "memory": [*outcomes("paraphrase", 90, 96), *outcomes("unknown", 20, 24)],
        "base": [*outcomes("paraphrase", 0, 96), *outcomes("unknown", 24, 24)],
        "full": [*outcomes("paraphrase", 93, 96), *outcomes("unknown", 24, 24)],
    }
    rows = {arm: tuple(each) for arm, each in (arms or usual).items()}
    notes = ("wrong: there is no other memory in the folder.",)
    return RecallReport("exact_match", rows, notes, {"memory": "handbook"}).to_json()


def card(name: str) -> dict[str, Any]:
    """What a list of memories reads of a card."""
    return {
        "name": name,
        "id": "e923893f9a6fccfa",
        "reason": "recalled",
        "adapter": {"lora": {"rank": 8}},
        "report": {"recall": verdict()["recall"]},
    }


def merge() -> dict[str, Any]:
    """The record of a merge of two memories, with one trial that could not be."""

    def estimate(n_right: int) -> dict[str, Any]:
        share = wilson(n_right, 8)
        return {"n": 8, "recall": share.mean, "low": share.low, "high": share.high}

    part = {
        "recall": {
            "paraphrase": {"alone": estimate(8), "merged": estimate(7), "base": estimate(0)}
        },
        "lost": {"paraphrase": {"n": 8, "mean": 0.125, "low": -0.04, "high": 0.3}},
    }
    trial = {"rank": 16, "seconds": 1.25, "options": {}, "why_not": ""}
    return {
        "parts": [{"memory": name, **part} for name in ("a", "b")],
        "trials": [
            {**trial, "method": "ties", "options": {"density": 0.2}, "held": [estimate(8)] * 2},
            {**trial, "method": "svd", "held": [], "why_not": "ranks differ; give --rank."},
        ],
    }
