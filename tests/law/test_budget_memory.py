"""The claim that a budget is what a write takes, measured on a pretrained base where one is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.real import USERS, needs

ROOT = Path(__file__).parents[2]
NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs /proc, which counts what was resident"
)


@pytest.mark.slow
@needs("smollm2")
@NEEDS_PROC
def test_a_budget_is_within_15_percent_of_the_memory_that_a_write_takes() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOREWRIGHT_CACHE": str(USERS)}
    command = [sys.executable, str(ROOT / "benchmarks" / "budget_memory.py"), "--quick"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "smollm2, LoRA of rank 8" in ran.stdout
