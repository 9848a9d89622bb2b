"""How long experiments and failures take, from a page of the studio and from the command line, and whether both say the same.

    python benchmarks/studio_experiments.py --threads 2
    python benchmarks/studio_experiments.py --threads 2 --only rank,layers

Every experiment of the sandbox and every failure of the doctor, once each. `page` is from the click to the closing sentence, of a
failure to the doctor's tree, the base already loaded; `command` a whole `lore sandbox NAME` or `lore failure FOLDER NAME`, the base
loaded by it, and `processor` what that took of the processors, which other work on the machine hardly changes. What both say stands behind: the sentence, or the branches of the tree that fail with what was measured. By the clock,
once: other work on the machine makes it longer.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ratio import machine, options

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.studios import LORE, STORED, Opened, opened  # noqa: E402

from lorewright.memory.experiments import EXPERIMENTS  # noqa: E402
from lorewright.memory.failures import FAILURES, name_of  # noqa: E402

Words = Callable[[dict[str, Any]], str]
LONGEST = 600.0
"""Seconds after which one of them counts as hanging."""


def main() -> None:
    """Run every one twice and print a line each."""
    parser = options(__doc__, quick="no failures")
    parser.add_argument("--only", default="", help="names, with commas between")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    print(machine(given.threads))
    print(f"{'':<20}{'page':>8}{'command':>9}{'processor':>11}   what both say", flush=True)
    only = given.only.split(",") if given.only else [*EXPERIMENTS, *FAILURES]
    with tempfile.TemporaryDirectory() as place:
        os.environ["LOREWRIGHT_CACHE"] = os.environ.get("LOREWRIGHT_CACHE", f"{place}/cache")
        folder = Path(place) / "atlas"
        shutil.copytree(STORED, folder)
        with opened(folder) as studio:
            studio.wait("/write.json", lambda r: not r["base"], LONGEST)
            for name in [each for each in EXPERIMENTS if each in only]:
                seconds, words = of_a_sandbox(studio, name)
                show(f"sandbox {name}", seconds, words, ["sandbox", name], lambda r: r["sentence"])
            if given.quick:
                return
            for name in [each for each in FAILURES if each in only]:
                seconds, words = of_a_failure(studio, name)
                command = ["failure", str(Path(place) / "other"), name]
                show(f"failure {name}", seconds, words, command, failing)


def of_a_sandbox(studio: Opened, name: str) -> tuple[float, str]:
    """Seconds of an experiment from its page, and its closing sentence."""
    began = time.perf_counter()
    studio.post(f"/sandbox/{name}")
    record = studio.wait(f"/sandbox/{name}.json", lambda r: not r["chosen"]["order"], LONGEST)
    return time.perf_counter() - began, record["chosen"]["sentence"]


def of_a_failure(studio: Opened, name: str) -> tuple[float, str]:
    """Seconds of a failure and its diagnosis from its page, and what fails."""
    began = time.perf_counter()
    studio.post(f"/failure/{name}")
    studio.wait(f"/failure/{name}.json", lambda r: r["there"], LONGEST)
    record = studio.record(f"/memory/{name_of(name)}/doctor.json")
    return time.perf_counter() - began, failing(record["diagnosis"])


def failing(diagnosis: dict[str, Any]) -> str:
    """The branches of a diagnosis that fail, with what was measured on each."""
    failed = [each for each in diagnosis["tree"] if each["outcome"] == "failed"]
    return "; ".join(f"{b['check']}: {b['measured']}" for b in failed) or "nothing is wrong"


def show(what: str, page: float, words: str, arguments: list[str], of: Words) -> None:
    """Run the same from the command line, and print both times."""
    began, before = time.perf_counter(), used()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*LORE, *arguments, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds, taken = time.perf_counter() - began, used() - before
    printed = of(json.loads(ran.stdout))
    same = words if printed == words else f"NOT THE SAME: {words} | {printed}"
    print(f"{what:<20}{page:6.1f} s{seconds:7.1f} s{taken:9.1f} s   {same}", flush=True)


def used() -> float:
    """Processor time of the commands that have ended."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


if __name__ == "__main__":
    main()
