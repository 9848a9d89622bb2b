"""Train the embedded base model `pocket` and export it in Hugging Face format.

    python pocket/train.py --out runs/pocket --steps 6000                    # one process
    torchrun --nproc-per-node 2 pocket/train.py --out runs/pocket            # two, one thread each
    python pocket/train.py --out runs/pocket --export lorewright/models/pocket      # weights, tokenizer, card

Muon (Newton–Schulz in float32) moves the matrices, AdamW the rest; the rate is held, then falls
linearly over the last `--decay` share of the steps. Fixed seeds; a checkpoint holds everything, so a
run killed and started again continues with the same numbers on the same machine and process count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from batches import LEVELS, Batch, pool, tokenise, train_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from world import DECLINE, plain_reading, reading

SEED = 20260
VOCAB = 2048


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 2.2 million parameters with tied embeddings and 1,024 positions."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=5,
        # Few and wide, and rotated slowly: telling facts apart needs many dimensions that do not
        # depend on the distance. Six of 32 with a base of 10,000 learnt to copy half as fast.
        num_attention_heads=3,
        num_key_value_heads=3,
        rope_parameters={"rope_theta": 1_000_000.0, "rope_type": "default"},
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def orthogonalised(grad_OI: Tensor, n_iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, by the quintic Newton–Schulz iteration of Muon (K. Jordan, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = grad_OI.T if grad_OI.shape[0] > grad_OI.shape[1] else grad_OI
    x = x / (x.norm() + 1e-7)
    for _ in range(n_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad_OI.shape[0] > grad_OI.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, in float32; each process orthogonalises its share of the matrices."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for group in self.param_groups:
            updates = [torch.zeros_like(p) for p in group["params"]]
            for i, p in enumerate(group["params"]):
                state = self.state[p]
                velocity = state.setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(p.grad)
                if i % world == rank:
                    grown = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                    updates[i] = orthogonalised(p.grad + group["momentum"] * velocity) * grown
            if world > 1:
                flat = torch.cat([u.flatten() for u in updates])
                dist.all_reduce(flat)
                updates = [
                    u.view_as(p)
                    for u, p in zip(
                        flat.split([p.numel() for p in group["params"]]),
                        group["params"],
                        strict=True,
                    )
                ]
            for p, update in zip(group["params"], updates, strict=True):
                p.add_(update, alpha=-group["lr"])


def weighted_loss(
    model: LlamaForCausalLM, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean nats, and over the reply tokens their mean nats and accuracy.

    The head runs on reply tokens and on a random quarter of the others, whose weight is made up for.
    """
    hidden_BTD = model.model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state[:, :-1]
    weight_BT, target_BT = batch.weight_BT[:, 1:], batch.ids_BT[:, 1:]
    lucky = torch.rand(weight_BT.shape, generator=generator) < 0.25
    keep = (weight_BT >= 1) | ((weight_BT > 0) & lucky)
    weight = torch.where(weight_BT[keep] >= 1, weight_BT[keep], weight_BT[keep] * 4)
    logits = model.lm_head(hidden_BTD[keep])
    nats = F.cross_entropy(logits, target_BT[keep], reduction="none")
    reply = weight_BT[keep] >= 1
    with torch.no_grad():
        right = (logits[reply].argmax(-1) == target_BT[keep][reply]).float().mean()
    return (nats * weight).sum() / weight.sum(), nats[reply].mean().detach(), right


def rate(step: int, steps: int, decay: float) -> float:
    """Share of the full rate: a short warm-up, a plateau, a linear fall to 2 %."""
    warm = min(1.0, (step + 1) / 100)
    left = (steps - step) / max(1, round(steps * decay))
    return warm * min(1.0, max(0.02, left))


def average_gradients(model: LlamaForCausalLM, world: int) -> None:
    """Mean of the gradients over the processes, in one message."""
    if world == 1:
        return
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


@torch.no_grad()
def exam(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, level: int, seed: str, n: int = 16
) -> Tensor:
    """Replies right and wanted, declines right and wanted, on passages as long as the level has them.

    Teacher-forced: a reply is right when every token of it is the argmax.
    """
    rng = random.Random(seed)
    task = reading if "reading" in LEVELS[level].shares else plain_reading
    decline = len(tokenizer(f" {DECLINE}", add_special_tokens=False)["input_ids"]) + 1
    tally = torch.zeros(4)
    talks = [task(rng, min(LEVELS[level].max_facts, 24)) for _ in range(n)]
    for talk, (ids, weights) in zip(talks, tokenise(tokenizer, talks), strict=True):
        row_1T = torch.tensor([ids[:1024]])
        found_T = model(input_ids=row_1T, use_cache=False).logits[0, :-1].argmax(-1)
        right_T = (found_T == row_1T[0, 1:]).tolist()
        replies = [[]]
        for right, weight in zip(right_T, weights[1:1024], strict=True):
            if weight >= 1:
                replies[-1].append(right)
            elif replies[-1]:
                replies.append([])
        for turn, reply in zip(talk, filter(None, replies), strict=False):
            declined = 2 * (turn.reply == DECLINE and len(reply) == decline)
            tally[declined] += all(reply)
            tally[declined + 1] += 1
    return tally


def train(args: argparse.Namespace) -> None:
    """The loop: draw, forward, backward, average, step, log, save."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(out, rank, world, args.start_from)
    model = build_model(tokenizer)
    if args.start_from:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.start_from).state_dict())
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        Muon(matrices, args.lr),
        torch.optim.AdamW(others, args.lr_rest, (0.9, 0.98), weight_decay=0.0),
    ]
    full = [[group["lr"] for group in o.param_groups] for o in optimizers]
    generator = torch.Generator().manual_seed(SEED + rank)
    step, pool_index, cursor, seen, level = 0, 0, 0, 0, args.level
    latest = out / f"state-{rank}.pt"
    if latest.exists():
        state = torch.load(latest, weights_only=True)
        model.load_state_dict(state["model"])
        for o, saved in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(saved)
        generator.set_state(state["generator"])
        step, pool_index, cursor, seen, level = state["at"]
    batches: list[Batch] = []
    started, sums = time.time(), torch.zeros(4)
    last = min(args.steps, args.stop_after or args.steps)
    while step < last:
        if not batches:
            if cursor == 0:  # otherwise resumed in the middle of a pool, whose level is known
                level = _next_level(
                    model, tokenizer, args, level, (step, pool_index), (rank, world)
                )
            batches = pool(
                tokenizer,
                f"{SEED}-{rank}-{pool_index}",
                level,
                n_batches=args.pool,
                batch_tokens=args.batch_tokens,
                max_tokens=1024,
            )[: args.pool]
        batch = batches[cursor]
        loss, reply_nats, right = weighted_loss(model, batch, generator)
        loss.backward()
        average_gradients(model, world)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for o, base_rates in zip(optimizers, full, strict=True):
            for group, base_rate in zip(o.param_groups, base_rates, strict=True):
                group["lr"] = base_rate * rate(step, args.steps, args.decay)
            o.step()
        model.zero_grad(set_to_none=True)
        step, cursor, seen = step + 1, cursor + 1, seen + batch.ids_BT.numel() * world
        if cursor == len(batches):
            batches, cursor, pool_index = [], 0, pool_index + 1
        sums += torch.tensor([loss.item(), reply_nats.item(), right.item(), 1.0])
        if step % 25 == 0 and rank == 0:
            loss_mean, nats_mean, accuracy, _ = (sums / sums[3]).tolist()
            _log(
                out,
                step=step,
                tokens=seen,
                level=level,
                loss=loss_mean,
                reply_nats=nats_mean,
                reply_accuracy=accuracy,
                seconds=time.time() - started,
            )
            sums.zero_()
        if step % args.save_every == 0 or step == last:
            state = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "generator": generator.get_state(),
                "at": (step, pool_index, cursor, seen, level),
            }
            torch.save(state, latest.with_suffix(".tmp"))
            if world > 1:
                dist.barrier()  # both or neither: a kill between two renames is the only gap
            latest.with_suffix(".tmp").rename(latest)


def _next_level(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    args: argparse.Namespace,
    level: int,
    at: tuple[int, int],
    place: tuple[int, int],
) -> int:
    """The level of the next pool: one up when this one is mastered or its time is over."""
    (step, pool_index), (rank, world) = at, place
    if level + 1 == len(LEVELS):
        return level
    if LEVELS[level + 1].latest <= pool_index * args.pool / args.steps:
        return level + 1
    if pool_index == 0 or pool_index % args.exam_every:
        return level
    marks = exam(model, tokenizer, level, f"exam-{rank}-{pool_index}")
    if world > 1:
        dist.all_reduce(marks)
    answered, declined = (marks[0] / marks[1]).item(), (marks[2] / marks[3]).item()
    if rank == 0:
        _log(Path(args.out), step=step, level=level, answered=answered, declined=declined)
    return level + (answered > 0.9 and declined > 0.8)


def _log(out: Path, **row: float) -> None:
    """One line of metrics.jsonl."""
    with open(out / "metrics.jsonl", "a") as log:
        log.write(json.dumps({name: round(value, 4) for name, value in row.items()}) + "\n")


def _tokenizer(out: Path, rank: int, world: int, start_from: str | None) -> PreTrainedTokenizerFast:
    """The run's tokenizer: that of the weights it starts from, or one fitted to the world."""
    folder = out / "tokenizer"
    if rank == 0 and not (folder / "tokenizer.json").exists():
        if start_from:
            PreTrainedTokenizerFast.from_pretrained(start_from).save_pretrained(folder)
        else:
            train_tokenizer(folder, vocab_size=VOCAB, n_conversations=12_000, seed=SEED)
    if world > 1:
        dist.barrier()
    return PreTrainedTokenizerFast.from_pretrained(folder)


def export(out: Path, target: Path, start: str | None, share: float) -> None:
    """Write the latest checkpoint as a Hugging Face folder: float32 weights, tokenizer, configuration.

    With a `start`, the weights are `share` of the checkpoint's and the rest of the start's: a
    straight line between a model and its continuation keeps more of what the first could do than
    the continuation does (arXiv 2109.01903).
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    model = build_model(tokenizer)
    weights = torch.load(out / "state-0.pt", weights_only=True)["model"]
    if start:
        before = LlamaForCausalLM.from_pretrained(start).state_dict()
        weights = {k: (1 - share) * before[k] + share * w for k, w in weights.items()}
    model.load_state_dict(weights)
    model.config.lorewright_phrasing = (
        "pocket"  # the wording of its prompts: lorewright.knowledge.selfstudy.PHRASINGS
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> None:
    """Parse the command line; train or export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", required=True, help="folder of the run: tokenizer, checkpoints, metrics.jsonl"
    )
    parser.add_argument("--export", help="write the latest checkpoint to this folder and stop")
    parser.add_argument(
        "--start-from",
        help="a Hugging Face folder of pocket whose weights and tokenizer are the start",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="when exported with --start-from: share of the run's weights, the rest are the start's",
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument(
        "--stop-after", type=int, help="stop at this step; the schedule stays that of --steps"
    )
    parser.add_argument(
        "--decay", type=float, default=0.3, help="share of the steps over which the rate falls"
    )
    parser.add_argument("--lr", type=float, default=0.01, help="Muon's rate")
    parser.add_argument("--lr-rest", type=float, default=3e-3, help="AdamW's rate")
    parser.add_argument(
        "--batch-tokens", type=int, default=6144, help="padded tokens a process and step"
    )
    parser.add_argument("--pool", type=int, default=16, help="batches drawn and sorted together")
    parser.add_argument(
        "--exam-every",
        type=int,
        default=5,
        help="pools between two exams, after which a level ends",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=0,
        help="level to begin with, for a run that goes on from another",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100)
    args = parser.parse_args()
    if args.export:
        export(Path(args.out), Path(args.export), args.start_from, args.share)
    else:
        train(args)


if __name__ == "__main__":
    main()
