"""What several test modules share: records."""

from __future__ import annotations

from typing import Any

from lorewright.recall.statistics import wilson


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
