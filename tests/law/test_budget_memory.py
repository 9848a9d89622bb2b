"""The claim that a budget is what a write takes, measured on a pretrained base where one is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from platformdirs import user_cache_path

ROOT = Path(__file__).parents[2]
USERS = user_cache_path("lorewright", appauthor=False)
"""The user's own cache, where a base may lie that was fetched; tests have another."""
NEEDS_SMOLLM2 = pytest.mark.skipif(
    not any(path.is_dir() for path in USERS.glob("models/SmolLM2*")),
    reason="SmolLM2 is not in the cache: lore models get smollm2",
)
NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs /proc, which counts what was resident"
)


@pytest.mark.slow
@NEEDS_SMOLLM2
@NEEDS_PROC
def test_a_budget_is_within_15_percent_of_the_memory_that_a_write_takes() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOREWRIGHT_CACHE": str(USERS)}
    command = [sys.executable, str(ROOT / "benchmarks" / "budget_memory.py"), "--quick"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "smollm2, LoRA of rank 8" in ran.stdout
