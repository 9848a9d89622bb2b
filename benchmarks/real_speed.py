"""Seconds of a training epoch on a real base: what rows share run once, and products in bfloat16.

    python benchmarks/real_speed.py                    # 80 questions on SmolLM2, rank 8, three epochs of each arm
    python benchmarks/real_speed.py --quick            # 24 questions

Four arms, one after the other, again and again: rows one by one in float32 (as before), what rows begin with alike
once in float32, rows one by one in bfloat16, and both. An epoch is the first of a write, its optimiser steps and all, without
certificates. Seconds are of CPU, which other processes inflate less than the clock. Arms of bfloat16
run where a write would choose it, or with `--all`. Beside the float32 arms stands what the arithmetic takes at least: 4 FLOPs a weight of
the decoder and distinct token of a step (forward, and back to what entered), 4 a weight of the head and learnt token, at the speed of a
plain product of the same width, measured in the same run. The last lines can be read by a script.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from ratio import machine, options, verdict
from torch import Tensor, nn
from write_speed import pairs

from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.data import Example
from lorewright.models.backends.backend import MakeBackend, Pass
from lorewright.models.backends.by_hand import ByHand
from lorewright.models.backends.network import Transformers
from lorewright.models.batching import n_alike
from lorewright.models.model import Model
from lorewright.training.arithmetic import choose
from lorewright.training.config import BFLOAT16, FLOAT32, Epoch, WriteConfig
from lorewright.training.loop import write

CONFIG = WriteConfig(lora=LoraConfig(rank=8), lr=1e-3)


class RowByRow(ByHand):
    """Runs what rows begin with alike once a row."""

    name = "torch, by hand, row by row"

    def hidden(self, ids_BT: Tensor, position_BC: Tensor, pass_: Pass) -> Tensor:
        """Hidden states at the positions."""
        return super().hidden(ids_BT, position_BC, replace(pass_, n_shared=0))


def epoch_seconds(model: Model, examples: Sequence[Example], arithmetic: str) -> float:
    """CPU seconds of the first epoch of a write."""
    # So little time that the first epoch is the last, with no certificate due.
    config = replace(CONFIG, arithmetic=arithmetic, max_seconds=1e-3)
    ended: list[float] = []

    def note(epoch: Epoch) -> None:
        ended.append(time.process_time())

    started = time.process_time()
    write(model, examples, config, on_epoch=note)
    return ended[0] - started


def n_distinct(model: Model, examples: Sequence[Example]) -> tuple[int, int]:
    """Distinct tokens of an epoch's steps, what rows begin with alike once a step, and learnt ones."""
    rows = [model.render(e.prompt, e.completion) for e in examples]
    ordered = sorted([*row.prompt_ids, *row.completion_ids] for row in rows)
    alike = n_alike(ordered[0], ordered[-1])
    n_steps = -(-len(rows) // CONFIG.batch_size)
    own = sum(len(row) - alike for row in rows)
    return n_steps * alike + own, sum(len(row.completion_ids) for row in rows)


def flops_a_second(width: int, n_tokens: int = 256, seconds: float = 1.0) -> float:
    """Of a product of (tokens, width) with (width, 4 width) in float32, for so many CPU seconds."""
    x, weight = torch.randn(n_tokens, width), torch.randn(4 * width, width)
    for _ in range(3):
        x @ weight.t()
    began, n = time.process_time(), 0
    while time.process_time() - began < seconds:
        x @ weight.t()
        n += 1
    return 2 * n * x.numel() * len(weight) / (time.process_time() - began)


def floor_seconds(model: Model, examples: Sequence[Example]) -> float:
    """What an epoch's products take at least, see above."""
    config = model.network.config.get_text_config()
    weights = sum(
        module.weight.numel()
        for name, module in model.network.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name
    )
    n_tokens, n_learnt = n_distinct(model, examples)
    head = int(config.vocab_size) * int(config.hidden_size)
    flops = 4 * (weights * n_tokens + head * n_learnt)
    return flops / flops_a_second(int(config.hidden_size))


def main() -> None:
    """Time the arms and print them."""
    parser = options(__doc__, quick="24 questions")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="bfloat16 also where it is slower")
    parsed = parser.parse_args()
    print(machine(parsed.threads))
    base = Model.load(parsed.model)

    def running(make: MakeBackend) -> Model:
        backends = {"torch": make, "transformers": Transformers}
        return Model(base.network, base.tokenizer, base.name, backends=backends)

    examples = pairs(24 if parsed.quick else 80)
    reduced, *_ = choice = choose(running(ByHand), [CONFIG])
    makers: dict[str, tuple[Callable[[nn.Module], ByHand], str]] = {
        "row by row, float32": (RowByRow, FLOAT32),
        "shared once, float32": (ByHand, FLOAT32),
        "row by row, bfloat16": (RowByRow, BFLOAT16),
        "shared once, bfloat16": (ByHand, BFLOAT16),
    }
    arms = {
        name: (running(make), arithmetic)
        for name, (make, arithmetic) in makers.items()
        if arithmetic == FLOAT32 or reduced == BFLOAT16 or parsed.all
    }
    rows = [base.render(e.prompt, e.completion) for e in examples]
    n_learnt = sum(len(row.completion_ids) for row in rows)
    print(f"# {base.name}, {len(rows)} rows, {sum(map(len, rows))} tokens, {n_learnt} learnt")
    print("# a write here chooses", *choice)
    times: dict[str, list[float]] = {name: [] for name in arms}
    floors = []
    for _ in range(parsed.repeats):
        floors.append(floor_seconds(base, examples))
        for name, (model, arithmetic) in arms.items():
            times[name].append(epoch_seconds(model, examples, arithmetic))
    for name, values in times.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"{name:24} {statistics.median(values):6.1f} s an epoch ({each})")
    n_tokens, _ = n_distinct(base, examples)
    floor = statistics.median(floors)
    print(f"{'products alone, float32':24} {floor:6.1f} s an epoch of {n_tokens} distinct tokens")
    share = floor / statistics.median(times["shared once, float32"])
    print(f"share_of_the_floor={share:.2f}")
    plain, *others = times.items()
    for name, values in others:
        print(verdict(name.replace(", ", "_").replace(" ", "_"), plain[1], values))


if __name__ == "__main__":
    main()
