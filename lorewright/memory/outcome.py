"""What the verbs of a memory are told and tell: progress on the way, and what a write came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorewright.recall.traces import Audit
from lorewright.recall.verify import RecallReport

BEFORE = "before"
"""`<name>-before` is what a name stood for before it was superseded."""


@dataclass(frozen=True)
class Outcome:
    """What a write came to."""

    name: str
    adapter_id: str
    folder: Path
    reason: str
    """Why training ended: `recalled` when every example was certified."""
    n_examples: int
    epochs: int
    seconds: float
    """Training time alone."""
    audit: Audit
    """Free-running recall of what was trained, after reload from disk."""
    report: RecallReport
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and the run's report."""
        trained = self.audit.recall
        report = self.report.to_json()
        return {
            **report,
            "memory": self.name,
            "adapter": self.adapter_id,
            "folder": str(self.folder),
            "reason": self.reason,
            "n_examples": self.n_examples,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "trained": {
                "n": trained.n,
                "recall": trained.mean,
                "low": trained.low,
                "high": trained.high,
                "disagreements": len(self.audit.disagreements),
            },
            "notes": [*self.notes, *report["notes"]],
        }
