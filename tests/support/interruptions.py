"""Interruptions at a place that is named: a file about to be replaced, or a step of progress."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lorewright.training.watch import Watch


def interrupt_before(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when a file of this name is about to be put in its place."""
    replace = os.replace

    def stop(part: Any, target: Any) -> None:
        if Path(target).name == file:
            raise KeyboardInterrupt
        replace(part, target)

    monkeypatch.setattr(os, "replace", stop)


def interrupted_at(step: str) -> Watch:
    """Ctrl-C at a step of progress."""

    def stop(text: str) -> None:
        if text == step:
            raise KeyboardInterrupt

    return Watch(stop)
