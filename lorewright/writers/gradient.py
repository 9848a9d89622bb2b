"""Writing by gradient descent: an adapter trained on a lesson until it is recalled.

Knows training and its settings; the verdict belongs to `recall`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lorewright.adapters.proof import unchanged
from lorewright.errors import NoEffect
from lorewright.models.model import Model
from lorewright.training.config import BFLOAT16, HeldOut, WriteConfig
from lorewright.training.filenames import STOP_FILE
from lorewright.training.loop import write
from lorewright.training.watch import Watch
from lorewright.writers.adapter import AdapterState
from lorewright.writers.lessons import contexts_of, cost_of
from lorewright.writers.writer import Cost, Material


@dataclass(frozen=True)
class Gradient:
    """Trains a LoRA or DoRA adapter with the settings of `WriteConfig`."""

    config: WriteConfig

    name = "gradient"
    trains = "A and B of a LoRA or DoRA adapter, until the lesson is recalled"
    leaves = AdapterState.kind
    reads: Literal["text", "lesson"] = "lesson"
    needs_context = False
    exports = True
    streams = False
    trained_offline = False

    def write(
        self, model: Model, material: Material, *, seed: int, run: Path | None, watch: Watch
    ) -> tuple[AdapterState, Cost]:
        """Train on the material's examples; a file STOP_FILE in the run ends it after an epoch.

        Raises as `training.loop.write`, NoEffect for a module that training left at zero.
        """
        config = replace(self.config, seed=seed)
        examples = material.examples
        runs_in = model.runs_in()
        watch.step(f"training in {runs_in}")
        held_out = HeldOut.of(material.held_out, len(examples), closely=watch.closely)
        written = write(
            model,
            [*examples, *material.rehearsal],
            config,
            contexts=contexts_of(material, config),
            held_out=held_out,
            stopping=(run / STOP_FILE).exists if run else lambda: False,
            run=run,
            on_epoch=watch.epoch,
            on_note=watch.step,
            advance=watch.advance,
        )
        if dead := unchanged(written.adapter):
            raise NoEffect(
                f"{len(dead)} of {len(written.adapter.modules)} modules have a weight change of "
                f"zero after training, the first is {dead[0]!r}; leave them out of the targets."
            )
        if BFLOAT16 in written.arithmetics:
            runs_in += f", products in {' and then '.join(written.arithmetics)}"
        cost = cost_of(model, material, written.epochs, written.reason, runs_in)
        return AdapterState(written.adapter), cost
