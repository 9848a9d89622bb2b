"""What the benchmarks share: options, the machine's line, the ratio's interval and last line."""

from __future__ import annotations

import argparse
import os
import platform
import random
import resource
import statistics
from collections.abc import Sequence

import torch


def options(about: str | None, *, quick: str) -> argparse.ArgumentParser:
    """A parser with a module's docstring as help, `--threads`, and `--quick` with what it does."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def machine(threads: int) -> str:
    """Processor, cores, threads, versions and load, in one line."""
    torch.set_num_threads(threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"# {platform.machine()}, {os.cpu_count()} cores, {device}, {threads} torch thread(s), "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )


def peak_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interval(
    slow: Sequence[float], fast: Sequence[float], n_draws: int = 2000
) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of the medians of two sets of times."""
    rng = random.Random(0)
    ratios = sorted(
        statistics.median(rng.choices(slow, k=len(slow)))
        / statistics.median(rng.choices(fast, k=len(fast)))
        for _ in range(n_draws)
    )
    return ratios[int(0.025 * n_draws)], ratios[int(0.975 * n_draws)]


def verdict(name: str, slow: Sequence[float], fast: Sequence[float]) -> str:
    """`<name> ratio=… low=… high=…`: how many times faster, from the times of both."""
    ratio = statistics.median(slow) / statistics.median(fast)
    low, high = interval(slow, fast)
    return f"{name} ratio={ratio:.2f} low={low:.2f} high={high:.2f}"
