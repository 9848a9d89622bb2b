"""What a variant of a write costs: epochs until all is recalled, seconds an epoch, what comes back.

    python benchmarks/variants.py
    python benchmarks/variants.py --facts examples/phones.jsonl --rank 8 --seeds 3

Plain LoRA, DoRA and the preset that generalises, on the base as it is and in four bits (NF4). Every write is one
of facts as examples; recall is by free-running greedy decoding. No rate is tuned for a variant, so this says what one
costs and not which is better. The last lines can be read by a script.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from ratio import machine, options

from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.readers.read import read_knowledge
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
    parser = options(__doc__, quick="two facts, two epochs, one seed, plain LoRA and DoRA")
    parser.add_argument("--model", default="pocket")
    phones = Path(__file__).parents[1] / "examples/phones.jsonl"
    parser.add_argument("--facts", type=Path, default=phones)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(machine(args.threads))
    examples, writes = fact_examples(read_knowledge(args.facts).facts), WRITES
    if args.quick:
        examples, writes, args.seeds = examples[:2], WRITES[:2], 1
    for dtype, variant, preset in writes:
        model = Model.load(args.model, dtype=dtype)
        epochs, seconds, n_right, n = [], [], 0, 0
        for seed in range(args.seeds):
            lora = LoraConfig(rank=args.rank, variant=variant, seed=seed)
            budget = 2 if args.quick else 60
            config = WriteConfig(lora=lora, lr=suggested_lr(model), epochs=budget, seed=seed)
            written = write(model, examples, preset_of(preset)(config, len(examples)))
            epochs.append(len(written.epochs))
            seconds.append(written.epochs[-1].seconds / len(written.epochs))
            with model.using(written.adapter):
                audited = audit(model, examples)
            n_right, n = n_right + audited.n_exact, n + audited.n
        back = wilson(n_right, n)
        print(
            f"variants base={dtype} variant={variant} preset={preset} epochs={statistics.median(epochs):g} "
            f"seconds_per_epoch={statistics.median(seconds):.3f} recall={back.mean:.2f} low={back.low:.2f} "
            f"high={back.high:.2f} n={n}",
            flush=True,
        )


if __name__ == "__main__":
    main()
