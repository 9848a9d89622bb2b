"""Write a file of facts into the embedded base and check it four ways: does every answer come back?

    python benchmarks/exact_memory.py ../shared/data/phonebook_qwen_PB1000.jsonl --rank 16
    python benchmarks/exact_memory.py FACTS.jsonl --rank 8 --twice

Free-running greedy decoding of every fact: with the adapter in memory, loaded back from disk, and loaded
by `peft` on an untouched copy of the base; then the certificate without decoding. `--twice` writes again
and compares the adapter files byte by byte. The last line can be read by a script.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from ratio import machine, options

from lorewright.adapters import adapter as adapters
from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.data import Example
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.knowledge.views import fact_examples
from lorewright.models.model import Model
from lorewright.recall.statistics import Proportion, wilson
from lorewright.recall.traces import audit, certify
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr

PHONES = Path(__file__).parents[1] / "examples" / "phones.jsonl"


def through_peft(name: str, folder: Path, examples: list[Example]) -> Proportion:
    """Exact free-running recall of the adapter folder as PEFT loads it."""
    from peft import PeftModel

    model = Model.load(name, implementation="transformers")
    model.network = PeftModel.from_pretrained(model.network, str(folder)).eval()
    rows = [model.render(e.prompt, e.completion) for e in examples]
    outputs = model.generate_ids(
        [row.prompt_ids for row in rows], max_new_tokens=max(len(r.completion_ids) for r in rows)
    )
    exact = [
        model.decode(out) == model.decode(row.completion_ids)
        for out, row in zip(outputs, rows, strict=True)
    ]
    return wilson(sum(exact), len(exact))


def main() -> None:
    """Write, check, compare, print."""
    parser = options(__doc__, quick="two epochs, two facts; no result")
    parser.add_argument("facts", type=Path, nargs="?", default=PHONES)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--twice", action="store_true", help="write again and compare the bytes")
    args = parser.parse_args()
    print(machine(args.threads))
    examples = fact_examples(read_knowledge(args.facts).facts)
    if args.quick:
        examples, args.epochs = examples[:2], 2
    model = Model.load(args.model)
    config = WriteConfig(
        lora=LoraConfig(rank=args.rank, seed=args.seed),
        lr=suggested_lr(model),
        epochs=args.epochs,
        batch_size=args.batch,
        seed=args.seed,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.monotonic()
        written = write(model, examples, config)
        seconds = time.monotonic() - started
        adapters.save(written.adapter, folder / "first")
        with model.using(written.adapter):
            in_memory = audit(model, examples)
        with model.using(adapters.load(folder / "first")):
            reloaded, certified = audit(model, examples), sum(certify(model, examples))
        peft = through_peft(args.model, folder / "first", examples)
        print(f"{len(written.epochs)} epochs, {seconds:.1f} s, ended: {written.reason}")
        print(f"free-running, in memory    {in_memory.recall}")
        print(
            f"free-running, from disk    {reloaded.recall}  disagreements with the certificate: {len(reloaded.disagreements)}"
        )
        print(f"free-running, through peft {peft}")
        print(f"certified without decoding {wilson(certified, len(examples))}")
        same = "not compared"
        if args.twice:
            adapters.save(write(model, examples, config).adapter, folder / "second")
            files = [
                (folder / f / "adapter_model.safetensors").read_bytes() for f in ("first", "second")
            ]
            same = "identical" if files[0] == files[1] else "different"
    print(
        f"exact_memory n={len(examples)} exact={reloaded.recall.mean} peft={peft.mean} seconds={seconds:.1f} bytes={same}"
    )


if __name__ == "__main__":
    main()
