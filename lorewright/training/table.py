"""The rows that writes learn, tokenised once: jobs of a sweep share theirs.

Knows a Model's batches; knows nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorewright.models.model import Batch, Model
from lorewright.training.config import Job


class Table:
    """All distinct rows of some jobs in one padded batch, from which steps take theirs."""

    def __init__(self, model: Model, jobs: Sequence[Job]) -> None:
        """Raises DataError for an example that does not fit the model's context."""
        texts = dict.fromkeys((e.prompt, e.completion) for job in jobs for e in job.examples)
        rendered = {text: model.render(*text) for text in texts}
        self.rows = list(dict.fromkeys(rendered.values()))
        place = {row: i for i, row in enumerate(self.rows)}
        self.rows_of = [
            [place[rendered[e.prompt, e.completion]] for e in job.examples] for job in jobs
        ]
        """For every job the row of each of its examples."""
        self.batch = model.batch(self.rows)
        self.lengths = [len(row) for row in self.rows]
        self.n_completion = [len(row.completion_ids) for row in self.rows]

    def take(self, rows: Sequence[int]) -> Batch:
        """Some rows, cut to the longest of them."""
        return self.batch.take(
            torch.tensor(rows, device=self.batch.ids_BT.device),
            max(self.lengths[i] for i in rows),
            max(self.n_completion[i] for i in rows),
        )
