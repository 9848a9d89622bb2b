"""What a sweep costs beside its jobs: records a second and memory, for jobs that do nothing.

    python benchmarks/sweep_overhead.py
    python benchmarks/sweep_overhead.py --jobs 20000 --on local:2 --on ray

Every job returns its own JSON of so many bytes, and its record is written as always. The time to the first
record is apart: workers or a cluster start in it. Then the same sweep is resumed with every record stored. The last line of each place can be read by a script.
"""

from __future__ import annotations

import copy
import tempfile
import time
import tracemalloc
from functools import partial
from pathlib import Path

from ratio import machine, options

from lorewright.bench.scale import Step, run


def note(times: list[float], step: Step) -> None:
    """Note when a record was made."""
    times.append(time.perf_counter())


def main() -> None:
    """Sweep nothing, time it, resume it."""
    parser = options(__doc__, quick="200 jobs")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=10_000, help="of a record")
    parser.add_argument("--on", action="append", help="here, local:2 and ray by default")
    args = parser.parse_args()
    print(machine(args.threads))
    if args.quick:
        args.jobs = 200
    jobs = [{"n": n, "payload": "x" * (args.bytes - 30)} for n in range(args.jobs)]
    for on in args.on or ("here", "local:2", "ray"):
        with tempfile.TemporaryDirectory() as folder:
            at = [time.perf_counter()]
            run(copy.copy, jobs, Path(folder), on=on, progress=partial(note, at))
            start, seconds = at[2] - at[0], at[-1] - at[2]  # at[2]: the first record
            tracemalloc.start()
            began = time.perf_counter()
            records = run(copy.copy, jobs, Path(folder), on=on)
            resumed = time.perf_counter() - began
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        print(
            f"sweep_overhead on={on} jobs={len(records)} start_seconds={start:.1f} jobs_per_second={len(jobs) / seconds:.0f} "
            f"resumed_per_second={len(jobs) / resumed:.0f} driver_bytes_per_record={held / len(jobs):.0f}"
        )


if __name__ == "__main__":
    main()
