"""MemFT as the loss of somebody else's trainer: TRL's SFTTrainer with a PEFT adapter.

    python examples/memft_with_trl.py                       # the embedded base, a minute
    python examples/memft_with_trl.py --model Qwen/Qwen3-0.6B --facts facts.jsonl

The trainer is TRL's, the adapter is PEFT's; only the loss is ours. What it wrote is a plain PEFT folder,
which `lore verify` and `Model.using` read like any other; the last line says how much comes back.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from lorewright.adapters import adapter as adapters
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.knowledge.views import fact_examples
from lorewright.models.model import Model
from lorewright.recall.traces import audit
from lorewright.training.objectives import OBJECTIVES, trainer_loss

CHOICES = ("sft", "memft_threshold", "memft_window")


def main() -> None:
    """Train with TRL, load the folder here, count what is recalled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--facts", type=Path, default=Path(__file__).parent / "phones.jsonl")
    parser.add_argument("--objective", choices=CHOICES, default="memft_threshold")
    parser.add_argument("--epochs", type=float, default=60)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()

    model = Model.load(args.model, implementation="transformers")
    examples = fact_examples(read_knowledge(args.facts).facts)
    rows = [model.render(example.prompt, example.completion) for example in examples]
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt_ids, *row.completion_ids],
                "labels": [-100] * len(row.prompt_ids) + list(row.completion_ids),
            }
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model.network,
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=args.epochs,
                per_device_train_batch_size=8,
                learning_rate=args.lr,
                lr_scheduler_type="linear",
                logging_strategy="epoch",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                bf16=False,
                activation_checkpointing=False,
            ),
            train_dataset=data,
            processing_class=model.tokenizer,
            peft_config=LoraConfig(
                r=args.rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            compute_loss_func=trainer_loss(OBJECTIVES[args.objective](0.5)),
        )
        trainer.train()
        trainer.model.save_pretrained(f"{folder}/adapter")
        written = adapters.load(Path(folder) / "adapter")
    base = Model.load(args.model)
    with base.using(written):
        audited = audit(base, examples)
    print(f"memft_with_trl objective={args.objective} n={audited.n} recall={audited.recall.mean}")


if __name__ == "__main__":
    main()
