"""How long `lore show` and `lore ask` take from being typed to their answer, and what of it imports.

    python benchmarks/startup.py            # the folder that the tests store, the embedded base

Each command runs in a new process, several times; the least is what the machine can do, the others
are other processes. Below them, what importing torch takes, with transformers, and with
a model class of it: a question to the embedded base imports none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "tests" / "fixtures" / "folder-2026-11-28"
LORE = "from lorewright.cli.main import main; main()"
LIMITS = {"lore show": 0.5, "lore ask": 3.0}
"""Seconds that each should take at most on an unloaded machine."""


def seconds(arguments: list[str]) -> float:
    """The wall time of one process. Raises CalledProcessError when it fails."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=env, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the least and the median time of each command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two repeats")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "atlas"
        shutil.copytree(STORED, folder)
        commands = {
            "lore --help": ["-c", LORE, "--help"],
            "lore show": ["-c", LORE, "show", str(folder)],
            "lore ask": ["-c", LORE, "ask", "Who leads the Tide Office?", "--memory", str(folder)],
            "torch": ["-c", "import torch"],
            "torch, transformers": ["-c", "import torch, transformers"],
            "and a model class": ["-c", "import transformers.modeling_utils"],
        }
        for name, arguments in commands.items():
            times = sorted(
                seconds(arguments) for _ in range(2 if options.quick else options.repeats)
            )
            limit = f"  limit {LIMITS[name]:.1f} s" if name in LIMITS else ""
            print(f"{name:24} least {times[0]:.2f} s  median {times[len(times) // 2]:.2f} s{limit}")


if __name__ == "__main__":
    main()
