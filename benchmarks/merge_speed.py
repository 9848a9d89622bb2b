"""Merge four rank-16 adapters of a 1024 x 2816 layer to rank 16: the QR core against the dense route.

    python benchmarks/merge_speed.py
    python benchmarks/merge_speed.py --quick

Ours is the whole of `merge(..., method="svd")`, its checks, content ids and float32 result included. The
dense route adds up the weight changes in float32 and cuts `torch.linalg.svd` (thin, which favours it)
to the same rank. Both run on one thread unless `--threads` says otherwise. The ratio is that of the
median CPU times of the process, which another process on the machine does not inflate (on one thread of
an idle machine they are the wall-clock times, which are printed too); low and high are the 95 % bootstrap
interval over repeats. The last line can be read by a script.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from ratio import machine, options, verdict
from torch import Tensor

from lorewright.adapters.adapter import HALVES, Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.merging.algebra import merge

N_ADAPTERS, RANK, N_OUT, N_IN, MODULE = 4, 16, 1024, 2816, "layers.0.mlp.down_proj"


def random_adapter(seed: int) -> Adapter:
    """An adapter of one module; its rank-one terms decay, as those of trained adapters do."""
    generator = torch.Generator().manual_seed(seed)
    A_RI = torch.randn(RANK, N_IN, generator=generator)
    B_OR = torch.randn(N_OUT, RANK, generator=generator) * 0.8 ** torch.arange(RANK)
    tensors = {MODULE + HALVES[0]: A_RI, MODULE + HALVES[1]: B_OR}
    return Adapter(LoraConfig(RANK, 2 * RANK, (MODULE,)), tensors, "random", "0" * 64, {})


def through_core(adapters: list[Adapter]) -> tuple[Tensor, Tensor]:
    """B (O, R) and A (R, I) of the merged adapter."""
    tensors = merge(adapters, method="svd", rank=RANK).adapter.tensors
    return tensors[MODULE + HALVES[1]], tensors[MODULE + HALVES[0]]


def through_dense(adapters: list[Adapter]) -> tuple[Tensor, Tensor]:
    """The same by materialising the weight change."""
    total_OI = torch.zeros(N_OUT, N_IN)
    for each in adapters:
        A_RI, B_OR = (each.tensors[MODULE + half] for half in HALVES)
        total_OI += each.config.scale * (B_OR @ A_RI)
    U, sigma, Vh = torch.linalg.svd(total_OI, full_matrices=False)
    root = sigma[:RANK].sqrt()
    return U[:, :RANK] * root, root[:, None] * Vh[:RANK]


def seconds(
    route: Callable[[list[Adapter]], object], adapters: list[Adapter], n: int
) -> tuple[list[float], list[float]]:
    """CPU and wall-clock seconds of n runs after one that does not count."""
    route(adapters)
    cpu, wall = [], []
    for _ in range(n):
        start, began = time.process_time(), time.perf_counter()
        route(adapters)
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - began)
    return cpu, wall


def main() -> None:
    """Time, compare, print."""
    parser = options(__doc__, quick="3 dense runs instead of 10")
    args = parser.parse_args()
    quick = args.quick
    print(machine(args.threads))
    adapters = [random_adapter(seed) for seed in range(N_ADAPTERS)]
    print(f"{N_ADAPTERS} adapters of rank {RANK} on {N_OUT} x {N_IN}, merged to rank {RANK}")

    (B_OR, A_RI), (D_OR, E_RI) = through_core(adapters), through_dense(adapters)
    core_OI, dense_OI = B_OR @ A_RI, D_OR @ E_RI
    difference, size = (core_OI - dense_OI).abs().max().item(), dense_OI.abs().max().item()
    print(f"largest difference {difference:.2e} where the largest entry is {size:.3g}")

    slow, slow_wall = seconds(through_dense, adapters, 3 if quick else 10)
    fast, fast_wall = seconds(through_core, adapters, 15 if quick else 50)
    for name, cpu, wall in (("dense", slow, slow_wall), ("core", fast, fast_wall)):
        print(
            f"{name}: median {statistics.median(cpu) * 1e3:.1f} ms of CPU (from {min(cpu) * 1e3:.1f} to "
            f"{max(cpu) * 1e3:.1f}), {statistics.median(wall) * 1e3:.1f} ms by the clock, n={len(cpu)}"
        )
    print(verdict("merge_speed", slow, fast))


if __name__ == "__main__":
    main()
