"""What a LoRA step takes of memory, measured, beside what `lore budget` reckons.

    python benchmarks/budget_memory.py
    python benchmarks/budget_memory.py --model pocket --quick

Each measurement is a process of its own: resident memory once the libraries are loaded, then the base, one epoch of a write whose only
batch has so many tokens, and the most that was resident since the base was there. Between them stands the reckoning, in float32 and
without checkpoints, as this library trains. The allocator is told to give back what is free at once (MALLOC_MMAP_THRESHOLD_): else the
most that was resident is of its habits as well. Exit code 1 where one of them is further off than 15 %.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ratio import machine, options

WITHIN = 0.15
BATCHES = ((96, 4), (128, 8), (256, 4), (512, 2))
"""Answer tokens a row, and rows."""
RANK = 8
TEXT = "The harbour office keeps a ledger of every ferry, crew and cargo that passes the bay each day. "


def resident(field: str) -> int:
    """Bytes that this process has: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(name: str, n_tokens: int, n_rows: int) -> dict[str, Any]:
    """In this process: bytes that a write takes above the libraries, and the tokens of its batch."""
    import scipy.optimize  # noqa: F401 - what is loaded later would count as the write's
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from lorewright.adapters.config import LoraConfig
    from lorewright.knowledge.data import Example
    from lorewright.models.model import Model
    from lorewright.training.config import WriteConfig
    from lorewright.training.loop import write

    before = resident("VmRSS")
    model = Model.load(name)
    ids = model.tokenizer(TEXT * (n_tokens // 16 + 2))["input_ids"][: n_tokens + n_rows]
    rows = [
        Example(f"Row {i}: recite.", model.tokenizer.decode(ids[i : i + n_tokens]))
        for i in range(n_rows)
    ]
    lengths = [len(model.render(row.prompt, row.completion)) for row in rows]
    Path("/proc/self/clear_refs").write_text("5")  # the most so far was loading
    config = WriteConfig(
        lora=LoraConfig(rank=RANK), epochs=1, batch_size=n_rows, lr=1e-4, arithmetic="float32"
    )
    write(model, rows, config)
    return {"n_tokens": n_rows * max(lengths), "n_bytes": resident("VmHWM") - before}


def measured(name: str, n_tokens: int, n_rows: int) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "MALLOC_TRIM_THRESHOLD_": "131072",
    }
    command = [sys.executable, __file__, "--one", f"{n_tokens},{n_rows}", "--model", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def reckoned(name: str, n_tokens: int) -> float:
    """Bytes that `lore budget` reckons."""
    from lorewright.law.budget import LORA, account

    return account(
        name, LORA, rank=RANK, n_tokens=n_tokens, checkpointing=False, float32=True
    ).chosen.n_bytes


def main() -> None:
    """Print a line a batch."""
    parser = options(__doc__, quick="one batch")
    parser.add_argument("--model", default="smollm2", help="a base of `lore models`")
    parser.add_argument("--one", default="", help="TOKENS,ROWS: measure here and print it as JSON")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if given.one:
        n_tokens, n_rows = map(int, given.one.split(","))
        print(json.dumps(measure(given.model, n_tokens, n_rows)))
        return
    print(machine(given.threads))
    print(f"{given.model}, LoRA of rank {RANK}, float32\ntokens  measured  reckoned       off")
    worst = 0.0
    for n_tokens, n_rows in BATCHES[:1] if given.quick else BATCHES:
        found = measured(given.model, n_tokens, n_rows)
        expected = reckoned(given.model, found["n_tokens"])
        off = expected / found["n_bytes"] - 1
        worst = max(worst, abs(off))
        print(
            f"{found['n_tokens']:6}  {found['n_bytes'] / 1e9:5.3f} GB  {expected / 1e9:5.3f} GB  {100 * off:+6.1f} %"
        )
    if worst > WITHIN:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
