"""A sweep of ranks and seeds: stacks on one frozen base, against PEFT, one run after the other.

    python benchmarks/sweep_speed.py                 # one stack
    python benchmarks/sweep_speed.py --stacks 2      # a stack a core; PEFT computes on two threads
    python benchmarks/sweep_speed.py --upper         # adapters in the upper half, the trunk cached
    python benchmarks/sweep_speed.py --quick

With several stacks each has a process and a thread of its own and PEFT has as many threads; bases are loaded before the
clock starts. Both sides train the same adapters on the same batches in the same order with the same rates, AdamW and
clipping, from the same first weights, for the same number of epochs. PEFT's side is a plain loop, without
a trainer's costs. How far the weights are apart at the end is printed twice: with Adam's own epsilon, which
turns a gradient that is rounding noise into a step of a whole rate, and with one above that noise. The last
line can be read by a script.
"""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, wait

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from ratio import machine, options, peak_mib, verdict
from torch import Tensor
from verify_speed import phone_book

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.targets import survey
from lorewright.knowledge.data import Example
from lorewright.models.batching import batches
from lorewright.models.model import Model
from lorewright.training import optimisers as optim
from lorewright.training.config import Diverged, Job, WriteConfig, Written, rate
from lorewright.training.loop import write, write_all
from lorewright.training.rates import suggested_lr

RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
CALM = 1e-5
"""An epsilon for Adam that rounding does not reach: gradients of single weights are often 1e-8."""
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
            target_modules=sorted({site.name.split(".")[-1] for site in survey(model.network)[0]}),
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
    optimizer = torch.optim.AdamW(weights.values(), config.lr, eps=optim.EPS, weight_decay=0)
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
    tensors = {name: weight.detach().clone() for name, weight in weights.items()}
    network.unload()
    return tensors


def start(name: str) -> None:
    """What a process of a stack holds."""
    torch.set_num_threads(1)
    start.model = Model.load(name)  # type: ignore[attr-defined]


def stacked(jobs: Sequence[Job]) -> list[Written | Diverged]:
    """One stack, in such a process."""
    return write_all(start.model, jobs)  # type: ignore[attr-defined]


def shares(jobs: Sequence[Job], n_stacks: int) -> list[list[Job]]:
    """Jobs, which come by rank, in runs of about equal work: a rank is padded to its stack's largest."""
    parts: list[list[Job]] = [[] for _ in range(n_stacks)]
    work = [1 + job.config.lora.rank / 32 for job in jobs]
    done = 0.0
    for job, amount in zip(jobs, work, strict=True):
        parts[min(n_stacks - 1, int(n_stacks * (done + amount / 2) / sum(work)))].append(job)
        done += amount
    return [share for share in parts if share]


def difference(written: Written | Diverged, alone: dict[str, Tensor]) -> float:
    """Norm of the difference of two adapters' weights over the norm of the second."""
    assert isinstance(written, Written), written.why
    tensors = written.adapter.tensors
    apart = sum(float((tensors[k] - t).square().sum()) for k, t in alone.items())
    return (apart / sum(float(t.square().sum()) for t in alone.values())) ** 0.5


def main() -> None:
    """Sweep both ways, compare weights and times."""
    parser = options(__doc__, quick="four ranks, two seeds, one repeat")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--facts", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--stacks", type=int, default=1, help="ours on so many cores; PEFT's threads"
    )
    parser.add_argument("--upper", action="store_true", help="adapters in the upper half only")
    args = parser.parse_args()
    ranks = RANKS[::2] if args.quick else RANKS
    if args.quick:
        args.seeds, args.repeats, args.epochs = 2, 1, 3
    print(machine(args.stacks))
    model = Model.load(args.model, implementation="transformers")
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
    slow, fast, apart = [], [], 0.0
    parts = shares(jobs, args.stacks)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.stacks, context, start, (args.model,)) as pool:
        wait([pool.submit(time.sleep, 1.0) for _ in parts])  # every process is up
        for repeat in range(args.repeats):
            began = time.perf_counter()
            together = [written for share in pool.map(stacked, parts) for written in share]
            fast.append(time.perf_counter() - began)
            through_peft.seconds = 0.0  # type: ignore[attr-defined]
            for job, written in zip(jobs, together, strict=True):
                alone = through_peft(copy.copy(model), examples, job.config)
                apart = max(apart, difference(written, alone))
            slow.append(through_peft.seconds)  # type: ignore[attr-defined]
            print(
                f"# repeat {repeat}: PEFT {slow[-1]:.1f} s, {len(parts)} stack(s) {fast[-1]:.1f} s",
                flush=True,
            )
    usual, optim.EPS = optim.EPS, CALM
    calm = max(
        difference(written, through_peft(copy.copy(model), examples, job.config))
        for job, written in zip(jobs, write_all(model, jobs), strict=True)
    )
    optim.EPS = usual
    steps = len(jobs) * args.epochs * -(-args.facts // args.batch)
    print(
        f"{len(ranks)} ranks x {args.seeds} seeds, {args.facts} facts, {args.epochs} epochs, {steps} "
        f"steps; peak memory {peak_mib():.0f} MiB"
    )
    print(f"weights apart, as a share of their norm, worst run: {apart:.1e}")
    print(f"the same with Adam's epsilon at {CALM:g} on both sides: {calm:.1e}")
    name = "sweep_speed_upper" if args.upper else "sweep_speed"
    print(f"{verdict(name, slow, fast)} difference={calm:.1e}")


if __name__ == "__main__":
    main()
