"""What a variant of a write costs: epochs until all is recalled, seconds an epoch, what comes back.

    python benchmarks/variants.py
    python benchmarks/variants.py --facts examples/phones.jsonl --rank 8 --seeds 3

Plain LoRA, DoRA and the preset that generalises, on the base as it is and in four bits (NF4). Every write is one
of facts as examples; recall is by free-running greedy decoding. No rate is tuned for a variant, so this says what one
costs and not which is better. The last lines can be read by a script.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from ratio import machine

from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.readers import read_knowledge
from lorewright.knowledge.views import fact_examples
from lorewright.models.model import Model
from lorewright.recall.statistics import wilson
from lorewright.recall.traces import audit
from lorewright.training.config import WriteConfig, preset_of
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr

WRITES = (
    ("float32", "lora", "exact"),
    ("float32", "dora", "exact"),
    ("float32", "lora", "generalise"),
    ("nf4", "lora", "exact"),
    ("nf4", "dora", "exact"),
)


def main() -> None:
    """Write with every variant, print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pocket")
    phones = Path(__file__).parents[1] / "examples/phones.jsonl"
    parser.add_argument("--facts", type=Path, default=phones)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    print(machine(args.threads))
    examples = fact_examples(read_knowledge(args.facts).facts)
    for dtype, variant, preset in WRITES:
        model = Model.load(args.model, dtype=dtype)
        epochs, seconds, n_right, n = [], [], 0, 0
        for seed in range(args.seeds):
            lora = LoraConfig(rank=args.rank, variant=variant, seed=seed)
            config = WriteConfig(lora=lora, lr=suggested_lr(model), seed=seed)
            done = write(model, examples, preset_of(preset)(config, len(examples)))
            epochs.append(len(done.epochs))
            seconds.append(done.epochs[-1].seconds / len(done.epochs))
            with model.using(done.adapter):
                found = audit(model, examples)
            n_right, n = n_right + found.n_exact, n + found.n
        back = wilson(n_right, n)
        print(
            f"variants base={dtype} variant={variant} preset={preset} epochs={statistics.median(epochs):g} "
            f"seconds_per_epoch={statistics.median(seconds):.3f} recall={back.mean:.2f} low={back.low:.2f} "
            f"high={back.high:.2f} n={n}",
            flush=True,
        )


if __name__ == "__main__":
    main()
