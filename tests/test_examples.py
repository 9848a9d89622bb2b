"""The example programs do what their first lines say, on the embedded base."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow
def test_memft_in_trls_trainer_writes_an_adapter_that_recalls_every_number() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "memft_with_trl.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("n=12 recall=1.0")
