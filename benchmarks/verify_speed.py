"""Is it remembered? Certificates without decoding against batched generation, on a thousand facts.

    python benchmarks/verify_speed.py
    python benchmarks/verify_speed.py --quick

A memory of some of the facts is written first, so that verdicts of both kinds occur. Then every fact is
judged twice: by one teacher-forced forward pass, and by Hugging Face's `generate`, greedy, batched, with
its cache. Decoding is timed at several batch sizes: 8 is what Transformers' trainers evaluate with unless set
otherwise, and the last line is against the size that is fastest here. Where the two verdicts differ the fact is
listed. The last lines can be read by a script.
"""

from __future__ import annotations

import random
import statistics
import time

import torch
from ratio import machine, options, verdict

from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.data import Example
from lorewright.models.model import Model, Rendered
from lorewright.recall.traces import trace
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr


def phone_book(n: int, seed: int = 0) -> list[Example]:
    """n invented names with ten-digit numbers, as the law paper has them."""
    rng = random.Random(seed)
    names = random.Random(seed + 1).sample(range(26**4), n)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def name(k: int) -> str:
        text = "".join(letters[k // 26**i % 26] for i in range(4))
        return f"{text[:2].capitalize()}el {text[2:].capitalize()}on"

    return [
        Example(f"{name(k)}:", str(rng.randint(10**9, 10**10 - 1)), source=f"fact-{i}")
        for i, k in enumerate(names)
    ]


def generated(model: Model, rows: list[Rendered], batch_size: int) -> list[bool]:
    """Verdicts by decoding."""
    longest = max(len(row.completion_ids) for row in rows)
    outputs = model.generate_ids(
        [row.prompt_ids for row in rows], max_new_tokens=longest, batch_size=batch_size
    )
    return [tuple(o) == r.completion_ids[:-1] for o, r in zip(outputs, rows, strict=True)]


def main() -> None:
    """Write, judge both ways, compare."""
    parser = options(__doc__, quick="fewer written facts, two repeats")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--written", type=int, default=100, help="facts that the memory holds")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[8, 32, 128, 256, 512],
        help="rows a decoding batch",
    )
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.quick:
        args.written, args.repeats, args.batches = 30, 2, [8, 128, 256]
    print(machine(args.threads))
    model = Model.load(args.model)
    facts = phone_book(args.facts)
    config = WriteConfig(lora=LoraConfig(rank=16), lr=suggested_lr(model), epochs=40)
    done = write(model, facts[: args.written], config)
    rows = [model.render(fact.prompt, fact.completion) for fact in facts]
    fast: list[float] = []
    slow: dict[int, list[float]] = {size: [] for size in args.batches}
    differ: dict[str, int] = {}
    with model.using(done.adapter), torch.no_grad():
        for _ in range(args.repeats):
            began = time.perf_counter()
            certified = [each.exact for each in trace(model, rows)]
            fast.append(time.perf_counter() - began)
            for size, seconds in slow.items():
                began = time.perf_counter()
                decoded = generated(model, rows, size)
                seconds.append(time.perf_counter() - began)
                for fact, a, b in zip(facts, certified, decoded, strict=True):
                    if a != b:
                        differ[f"{fact.prompt} {fact.completion}"] = size
    print(f"{args.facts} facts, {sum(certified)} of them come back, {len(differ)} verdicts differ")
    for text, size in differ.items():
        print(f"  differs: {text} (decoded {size} at once)")
    print(f"certificates {min(fast):.2f} s, best of {args.repeats}")
    for size, seconds in slow.items():
        line = verdict(f"verify_speed_batch{size}", seconds, fast)
        print(f"{line} decoding={min(seconds):.2f}")
    quickest = min(slow.values(), key=statistics.median)
    print(f"{verdict('verify_speed', quickest, fast)} disagreements={len(differ)}")


if __name__ == "__main__":
    main()
