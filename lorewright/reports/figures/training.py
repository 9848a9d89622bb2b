"""The figure of one write: training loss and recall by epoch, from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorewright.reports.figures.contrast import LEAST_LOSS
from lorewright.reports.figures.style import canvas, panels, style_axes
from lorewright.reports.results import checked_record


def training_figure(
    epochs: Sequence[Mapping[str, Any]], path: Path, *, about: str, dark: bool = False
) -> None:
    """Draw loss and the share of examples recalled by epoch, side by side.

    A filled point is a certified count, taken with the weights as they are. Raises DataError for
    epochs of another shape or none.
    """
    with checked_record():
        if not epochs:
            raise ValueError("it has no epochs")
        at = [epoch["epoch"] for epoch in epochs]
        loss = [max(LEAST_LOSS, float(epoch["loss_nats"])) for epoch in epochs]
        share = [epoch["n_recalled"] / epoch["n_examples"] for epoch in epochs]
        sure = [(e["epoch"], s) for e, s in zip(epochs, share, strict=True) if e["certified"]]
        with canvas(path, "How it was written", about, size=(9, 4.2), dark=dark) as (figure, ink):
            margins = {"left": 0.085, "right": 0.985, "top": 0.7, "bottom": 0.155, "wspace": 0.24}
            left, right = panels(figure, 1, 2, margins)[0]
            style_axes(left, ink, "Loss in training, nats per token (log scale)", "epoch")
            style_axes(right, ink, "Share of examples recalled", "epoch")
            left.set_yscale("log")
            left.yaxis.set_major_formatter("{x:g}")
            left.minorticks_off()
            left.plot(at, loss, color=ink.lines[0], linewidth=2.2, solid_capstyle="round")
            right.plot(at, share, color=ink.lines[1], linewidth=2.2, solid_capstyle="round")
            if sure:
                right.plot(*zip(*sure, strict=True), "o", color=ink.lines[1], clip_on=False)
            right.set_ylim(-0.03, 1.06)
            right.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
            for ax in (left, right):
                ax.set_xlim(min(at), max(at[-1], at[0] + 1))
                ax.xaxis.get_major_locator().set_params(integer=True)
