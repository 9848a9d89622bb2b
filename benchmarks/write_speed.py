"""Seconds until every fact is recalled: our write against TRL's SFTTrainer with PEFT, tuned.

    python benchmarks/write_speed.py                        # generated numbers and pairs, ranks 4 and 16
    python benchmarks/write_speed.py --facts FACTS.jsonl    # a file of facts instead of the numbers
    python benchmarks/write_speed.py --quick                # one small set, one rank, a narrow grid
    python benchmarks/write_speed.py --real SECTIONS.json   # SmolLM2: 16 numbers; every fact of a file of sections
                                                            # in three wordings, and TRL in float32 and in bfloat16

Same base, facts, rank, targets, tokens and template; batch size 8 on both sides. TRL gets every rate and
schedule of a grid and the best of them counts; ours runs with `--preset drill` (or another) and is not tuned. On both sides the clock stops at the
first epoch after which every fact is recalled exactly, and stands still while that is measured (one forward pass
after an epoch). Ours has its own checks and its preparations in that time, and goes on until every token has p > 0.6:
the time to there is printed as certified. A setting of TRL's that takes longer than the best so far is given up. Every run has a process of its own, so that peak memory is its own too.
peer_reached says how many of TRL's runs got there within their budget. Of sections, the fourth wording of every fact is asked afterwards,
and general questions that the base answers: other_wordings and retained, as means over seeds. The last lines can be read by a script.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from ratio import interval, machine, options, peak_mib
from verify_speed import phone_book

from lorewright.adapters.adapter import Adapter, load
from lorewright.adapters.config import LoraConfig
from lorewright.bench.recipes import cases_of
from lorewright.knowledge.data import Example
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.knowledge.views import fact_examples
from lorewright.memory.verify import usual_metric
from lorewright.models.model import Model
from lorewright.recall.traces import audit, trace
from lorewright.recall.verify import ask, known_beforehand, still_known
from lorewright.training.config import PRESETS, Epoch, WriteConfig, preset_of
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SCHEDULES = (("linear", 40), ("linear", 80), ("cosine", 60), ("constant", 60))
REAL_RATES = (5e-4, 1e-3, 2e-3)
REAL_SCHEDULES = (("constant", 40), ("linear", 16), ("linear", 32))
BATCH = 8
LEFT_OUT = 4
"""The wording of a section's facts that is asked and never trained."""


def pairs(n: int) -> list[Example]:
    """n questions with short answers on invented subjects, from the embedded base's world."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "pocket"))
    import random

    import world

    rng, answers = random.Random("write-speed"), {}
    while len(answers) < n:
        item = world.statements(rng, 1)[0]
        answers.setdefault(world.set_ask(item, 1), item.value)
    return [Example(question, answer) for question, answer in answers.items()]


def facts_of(name: str, n: int) -> list[Example]:
    """`numbers`, `pairs`, a file of facts, or one of sections, of whose facts the first n."""
    if name == "numbers":
        return phone_book(n)
    if name == "pairs":
        return pairs(n)
    if name.endswith(".json"):
        facts = [each for case in cases_of(name, LEFT_OUT) for each in case.facts][:n]
        return fact_examples([fact for wordings in facts for fact in wordings])
    return fact_examples(read_knowledge(Path(name)).facts)


def asked_afterwards(model: Model, adapter: Adapter, arm: dict[str, Any]) -> dict[str, float]:
    """Of sections: recall of the wording that was left out, and what is retained of the world."""
    if not arm["facts"].endswith(".json"):
        return {}
    cases = cases_of(arm["facts"], LEFT_OUT)
    probes = [p for case in cases for p in case.probes if p.kind == "paraphrase"][: arm["n"]]
    general = known_beforehand(model, [text for case in cases for text in case.texts])
    recalled = ask(model, probes, memory=adapter, metric=usual_metric(model))
    retained = still_known(model, adapter, general)
    return {
        "other_wordings": statistics.mean(r.score or 0.0 for r in recalled),
        "retained": statistics.mean(r.score or 0.0 for r in retained),
        "n_general": len(general),
    }


def ours(model: Model, examples: list[Example], arm: dict[str, Any]) -> dict[str, Any]:
    """One write with a preset."""
    rows = [model.render(e.prompt, e.completion) for e in examples]
    state = {"paused": 0.0, "seconds": math.nan, "epochs": 0, "exact": 0.0, "passes": 0.0}

    def measure(epoch: Epoch) -> None:
        now = time.perf_counter()
        if state["exact"] < 1:
            state["passes"] += epoch.n_trained / len(rows)
            exact = [each.exact for each in trace(model, rows)]
            state["exact"], state["epochs"] = sum(exact) / len(exact), epoch.epoch
            state["seconds"] = now - began - state["paused"]
        state["paused"] += time.perf_counter() - now

    config = preset_of(arm["preset"])(
        WriteConfig(
            lora=LoraConfig(rank=arm["rank"], seed=arm["seed"]),
            lr=suggested_lr(model),
            batch_size=BATCH,
            epochs=arm["epochs"],
            seed=arm["seed"],
        ),
        len(examples),
    )
    began = time.perf_counter()
    done = write(model, examples, config, on_epoch=measure)
    certified = time.perf_counter() - began - state["paused"]
    with model.using(done.adapter):
        state["exact"] = min(state["exact"], audit(model, examples).recall.mean)
    state |= asked_afterwards(model, done.adapter, arm)
    return state | {"certified": certified if done.complete else math.inf}


def trl(model: Model, examples: list[Example], arm: dict[str, Any]) -> dict[str, Any]:
    """One run of SFTTrainer; the clock stands still while recall is measured."""
    from datasets import Dataset
    from peft import LoraConfig as PeftConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = [model.render(e.prompt, e.completion) for e in examples]
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt_ids, *row.completion_ids],
                "labels": [-100] * len(row.prompt_ids) + list(row.completion_ids),
            }
            for row in rows
        ]
    )
    state = {"paused": 0.0, "began": math.nan, "exact": 0.0, "epochs": 0, "seconds": math.nan}

    class Measure(TrainerCallback):
        def on_train_begin(self, args: Any, state_: Any, control: Any, **_: Any) -> None:
            state["began"] = time.perf_counter()

        def on_epoch_end(self, args: Any, state_: Any, control: Any, **_: Any) -> Any:
            now = time.perf_counter()
            model.network.eval()
            exact = [each.exact for each in trace(model, rows)]
            model.network.train()
            state["exact"], state["epochs"] = sum(exact) / len(exact), state["epochs"] + 1
            state["seconds"] = now - state["began"] - state["paused"]
            control.should_training_stop = all(exact) or state["seconds"] > arm["limit"]
            state["paused"] += time.perf_counter() - now
            return control

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(
            model=model.network,
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=arm["epochs"],
                per_device_train_batch_size=BATCH,
                learning_rate=arm["lr"],
                lr_scheduler_type=arm["schedule"],
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                bf16=arm["dtype"] == "bfloat16",
                activation_checkpointing=False,
                seed=arm["seed"],
            ),
            train_dataset=data,
            processing_class=model.tokenizer,
            peft_config=PeftConfig(
                r=arm["rank"], lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Measure()],
        )
        trainer.train()
        outcome = {key: state[key] for key in ("seconds", "exact", "epochs")}
        if arm["last"]:
            trainer.save_model(folder)
            fresh = Model.load(arm["model"])
            outcome |= asked_afterwards(fresh, load(folder), arm)
    return outcome | {"passes": state["epochs"]}


def run(arm: dict[str, Any]) -> dict[str, Any]:
    """One arm in a process of its own."""
    command = [sys.executable, __file__, "--arm", json.dumps(arm)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arm} failed:\n{done.stderr[-2000:]}")
    outcome: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    best = "reached" if outcome["exact"] == 1 else f"only {outcome['exact']:.2f}"
    how = ""
    if arm["kind"] == "trl":
        how = f" {arm['dtype']} lr {arm['lr']:g} {arm['schedule']}/{arm['epochs']}"
    print(
        f"#   {arm['kind']}{how} seed {arm['seed']}: {best} after {outcome['epochs']} epochs, "
        f"{outcome['passes']:.1f} times all examples, "
        f"{outcome['seconds']:.1f} s, {outcome['tokens_per_second']:.0f} tokens/s, "
        f"{outcome['peak_mib']:.0f} MiB",
        flush=True,
    )
    return outcome


def one(arm: dict[str, Any]) -> None:
    """What the process of an arm does."""
    torch.set_num_threads(arm["threads"])
    whose = "auto" if arm["kind"] == "ours" else "transformers"
    model = Model.load(arm["model"], implementation=whose, dtype=arm.get("dtype", "auto"))
    examples = facts_of(arm["facts"], arm["n"])
    n_tokens = sum(len(model.render(e.prompt, e.completion)) for e in examples)
    outcome = (ours if arm["kind"] == "ours" else trl)(model, examples, arm)
    outcome["tokens_per_second"] = n_tokens * outcome["passes"] / outcome["seconds"]
    print(json.dumps(outcome | {"peak_mib": peak_mib()}))


def compare(name: str, n: int, rank: int, args: argparse.Namespace) -> None:
    """Tune TRL on one seed, run the best of it and ours on every seed, print the ratio."""
    print(f"## {name}, {n} facts, rank {rank}", flush=True)
    arm = {"model": args.model, "facts": name, "n": n, "rank": rank, "threads": args.threads}
    own = arm | {"kind": "ours", "preset": args.preset, "epochs": 80}
    mine = [run(own | {"seed": seed}) for seed in range(args.seeds)]
    limit = args.patience * statistics.median(each["seconds"] for each in mine)
    for dtype in args.peers:
        theirs = tuned(arm | {"kind": "trl", "dtype": dtype, "limit": limit}, args)
        label = Path(name).stem + ("" if dtype == "auto" else f"_{dtype}")
        print(compared(f"write_speed_{label}_r{rank}", mine, theirs), flush=True)


def tuned(arm: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The best of TRL's rates and schedules on the first seed, run on every seed."""
    rates, schedules = args.rates, args.schedules
    if args.quick:
        rates, schedules = rates[1:2], schedules[1:3]
    tried, limit = [], arm["limit"]
    for lr in rates:
        for schedule, epochs in schedules:
            how = {"lr": lr, "schedule": schedule, "epochs": epochs}
            outcome = run(arm | how | {"seed": 0, "limit": limit, "last": False})
            tried.append((outcome["exact"] < 1, -outcome["exact"], outcome["seconds"], how))
            if outcome["exact"] == 1:
                limit = min(limit, outcome["seconds"])
    *_, how = min(tried, key=lambda row: row[:3])
    return [run(arm | how | {"seed": seed, "last": True}) for seed in range(args.seeds)]


def compared(name: str, mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """The line of one ratio: times, how many got there, memory, and what came back afterwards."""
    slow, fast = ([each["seconds"] for each in side] for side in (theirs, mine))
    low, high = interval(slow, fast)
    reached = [sum(each["exact"] == 1 for each in side) for side in (mine, theirs)]
    certified = statistics.median(each["certified"] for each in mine)
    memory = [max(each["peak_mib"] for each in side) for side in (mine, theirs)]
    line = (
        f"{name} ratio={statistics.median(slow) / statistics.median(fast):.2f} "
        f"low={low:.2f} high={high:.2f} certified={statistics.median(slow) / certified:.2f} "
        f"reached={reached[0]}/{len(mine)} peer_reached={reached[1]}/{len(theirs)} "
        f"memory={memory[0]:.0f} peer_memory={memory[1]:.0f}"
    )
    for key in ("other_wordings", "retained"):
        if key in mine[0]:
            values = [statistics.mean(each[key] for each in side) for side in (mine, theirs)]
            line += f" {key}={values[0]:.2f} peer_{key}={values[1]:.2f}"
    return line


def main() -> None:
    """Compare on every set of facts and rank."""
    parser = options(__doc__, quick="40 numbers, rank 16, two settings")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--facts", help="a file of facts in place of the generated numbers")
    parser.add_argument(
        "--sets", nargs="+", choices=("numbers", "pairs"), default=["numbers", "pairs"]
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="drill", help="of ours")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of TRL's grid")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=("auto", "float32", "bfloat16"),
        default=["auto"],
        help="in which arithmetic TRL trains; auto is the base's own",
    )
    parser.add_argument("--real", metavar="SECTIONS", help="SmolLM2, with a file of sections")
    parser.add_argument(
        "--patience",
        type=float,
        default=8,
        help="a TRL run may take so many times our seconds; where none gets there, the ratio is larger",
    )
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.set_defaults(schedules=SCHEDULES)
    args = parser.parse_args()
    if args.arm:
        one(json.loads(args.arm))
        return
    print(machine(args.threads))
    every = {"numbers": (args.facts or "numbers", 100), "pairs": ("pairs", 400)}
    sets = [every[name] for name in args.sets]
    if args.quick:
        sets, args.ranks, args.seeds = [(args.facts or "numbers", 40)], [16], 1
    if args.real:
        args.model, args.peers = "smollm2", ["float32", "bfloat16"]
        args.ranks = [8]
        args.rates, args.schedules = REAL_RATES, REAL_SCHEDULES
        every = {"numbers": ("numbers", 16), "pairs": (args.real, 6 if args.quick else 72)}
        sets = [every[name] for name in args.sets]
    for name, n in sets:
        for rank in args.ranks:
            compare(name, n, rank, args)


if __name__ == "__main__":
    main()
