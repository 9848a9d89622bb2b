"""A sweep of ranks and seeds: one stack on one frozen base, against PEFT, one run after the other.

    python benchmarks/sweep_speed.py
    python benchmarks/sweep_speed.py --upper         # adapters in the upper half, the trunk cached
    python benchmarks/sweep_speed.py --quick

Both sides train the same adapters on the same batches in the same order with the same rates, AdamW and
clipping, from the same first weights, for the same number of epochs; how far the weights are apart at the
end is printed. PEFT's side is a plain loop, without a trainer's costs. The last line can be read by a
script.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from ratio import machine, peak_mib, verdict
from torch import Tensor
from verify_speed import phone_book

from lorewright.batching import batches
from lorewright.data import Example
from lorewright.lora import LoraConfig
from lorewright.model import Model
from lorewright.recipe import Job, WriteConfig, Written, rate
from lorewright.write import suggested_lr, write, write_all

RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
MARGIN = 0.999
"""No write of the sweep stops early: the sides then do the same steps."""


def through_peft(model: Model, examples: list[Example], config: WriteConfig) -> dict[str, Tensor]:
    """One run as PEFT users write it; the adapter's tensors by our names."""
    first = write(
        model, examples, WriteConfig(lora=config.lora, epochs=1, lr=1e-30)
    ).adapter.tensors
    rows = [model.render(e.prompt, e.completion) for e in examples]
    network = get_peft_model(
        model.network,  # type: ignore[arg-type]
        PeftConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules="all-linear",
            layers_to_transform=None if config.lora.layers is None else list(config.lora.layers),
        ),
    )
    weights = {
        name.removeprefix("base_model.model.").replace(".default", ""): weight
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(first[name])
    began = time.perf_counter()
    optimizer = torch.optim.AdamW(weights.values(), lr=config.lr, weight_decay=0.0)
    for epoch in range(config.epochs):
        groups = batches(
            [len(row) for row in rows],
            range(len(rows)),
            size=config.batch_size,
            seed=config.seed,
            epoch=epoch,
        )
        for done, group in enumerate(groups):
            width = max(len(rows[i]) for i in group)
            ids = torch.zeros(len(group), width, dtype=torch.long)
            labels = torch.full((len(group), width), -100)
            for at, i in enumerate(group):
                row, start = rows[i], len(rows[i].prompt_ids)
                ids[at, : len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
                labels[at, start : len(row)] = torch.tensor(row.completion_ids)
            loss = network(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), config.clip)
            for param_group in optimizer.param_groups:
                param_group["lr"] = rate(config, [], epoch + done / len(groups))
            optimizer.step()
    through_peft.seconds += time.perf_counter() - began  # type: ignore[attr-defined]
    found = {name: weight.detach().clone() for name, weight in weights.items()}
    network.unload()
    return found


def main() -> None:
    """Sweep both ways, compare weights and times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--facts", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--upper", action="store_true", help="adapters in the upper half only")
    parser.add_argument("--quick", action="store_true", help="four ranks, two seeds, one repeat")
    args = parser.parse_args()
    ranks = RANKS[::2] if args.quick else RANKS
    if args.quick:
        args.seeds, args.repeats, args.epochs = 2, 1, 3
    print(machine(args.threads))
    model = Model.load(args.model)
    depth = int(model.network.config.get_text_config().num_hidden_layers)
    layers = tuple(range(depth // 2, depth)) if args.upper else None
    examples = phone_book(args.facts)
    jobs = [
        Job(
            examples,
            WriteConfig(
                lora=LoraConfig(rank=rank, layers=layers, seed=seed),
                lr=suggested_lr(model),
                epochs=args.epochs,
                batch_size=args.batch,
                margin=MARGIN,
                seed=seed,
            ),
        )
        for rank in ranks
        for seed in range(args.seeds)
    ]
    slow, fast, worst = [], [], 0.0
    for repeat in range(args.repeats):
        began = time.perf_counter()
        together = write_all(model, jobs)
        fast.append(time.perf_counter() - began)
        through_peft.seconds = 0.0  # type: ignore[attr-defined]
        for job, found in zip(jobs, together, strict=True):
            assert isinstance(found, Written)
            alone = through_peft(copy.copy(model), examples, job.config)
            if repeat == 0:
                tensors = found.adapter.tensors
                off = max(float((tensors[k] - t).abs().max()) for k, t in alone.items())
                worst = max(worst, off / max(float(t.abs().max()) for t in alone.values()))
        slow.append(through_peft.seconds)  # type: ignore[attr-defined]
        print(f"# repeat {repeat}: PEFT {slow[-1]:.1f} s, one stack {fast[-1]:.1f} s", flush=True)
    steps = len(jobs) * args.epochs * -(-args.facts // args.batch)
    print(
        f"{len(ranks)} ranks x {args.seeds} seeds, {args.facts} facts, {args.epochs} epochs, {steps} "
        f"steps; peak memory {peak_mib():.0f} MiB"
    )
    print(f"largest difference of weights, over the largest weight: {worst:.1e}")
    name = "sweep_speed_upper" if args.upper else "sweep_speed"
    print(f"{verdict(name, slow, fast)} difference={worst:.1e}")


if __name__ == "__main__":
    main()
