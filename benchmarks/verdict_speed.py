"""Seconds of a verdict on a real base: every reply to its end, and what a score needs of it.

    python benchmarks/verdict_speed.py                 # 30 probes of examples/handbook.md on SmolLM2
    python benchmarks/verdict_speed.py --quick         # 6 probes

The controls `base`, `scaffold` and `full`, twice: in transformers' `generate`, 64 tokens a reply in batches padded on the
left (as before), and in `verify`, where probes share what stands before them and a reply ends when its score is settled.
Seconds are of CPU, which other processes inflate less than the clock. The last line can be read by a script.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from ratio import machine, options
from transformers import GenerationConfig

from lorewright.knowledge.data import Document, Knowledge, Probe
from lorewright.knowledge.lesson import contexts
from lorewright.knowledge.readers.probes import read_probes
from lorewright.knowledge.scoring import contains
from lorewright.models.model import Model
from lorewright.recall.verify import verify

HANDBOOK = Path(__file__).parents[1] / "examples" / "handbook.md"
N_TOKENS, N_ROWS = 64, 32


def to_the_end(model: Model, probes: Sequence[Probe], context: str) -> list[str]:
    """Replies of transformers' own greedy decoding."""
    prompts = [f"{context}\n\n{p.question}" if context else p.question for p in probes]
    rows = sorted((list(model.render(p).prompt_ids), i) for i, p in enumerate(prompts))
    rows.sort(key=lambda row: len(row[0]))
    stop = int(model.tokenizer.eos_token_id)
    config = GenerationConfig(max_new_tokens=N_TOKENS, eos_token_id=[stop], pad_token_id=stop)
    replies: dict[int, str] = {}
    for start in range(0, len(rows), N_ROWS):
        part = rows[start : start + N_ROWS]
        width = len(part[-1][0])
        ids_BT = torch.tensor([[stop] * (width - len(ids)) + ids for ids, _ in part])
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in part])
        out_BT = model.network.generate(
            input_ids=ids_BT, attention_mask=mask_BT, generation_config=config
        )
        for (_, i), ids in zip(part, out_BT[:, width:].tolist(), strict=True):
            replies[i] = model.decode(ids[: ids.index(stop)] if stop in ids else ids)
    return [replies[i] for i in range(len(rows))]


def main() -> None:
    """Time both and print them, with how many probes of each control score alike."""
    parser = options(__doc__, quick="6 probes")
    parser.add_argument("--model", default="smollm2")
    parsed = parser.parse_args()
    print(machine(parsed.threads))
    model = Model.load(parsed.model, implementation="transformers")
    every = [p for p in read_probes(HANDBOOK.with_suffix(".probes.jsonl")) if p.answers]
    probes = every[:: max(1, len(every) // (6 if parsed.quick else 30))][
        : 6 if parsed.quick else 30
    ]
    full, scaffold = contexts(Knowledge((Document.read(HANDBOOK),)))
    n_tokens = len(model.render(full).prompt_ids)
    print(f"# {model.name}, {len(probes)} probes, {n_tokens} tokens of text")
    began = time.process_time()
    report = verify(model, probes, adapter=None, full=full, scaffold=scaffold, metric="contains")
    settled = time.process_time() - began
    began = time.process_time()
    whole = {
        arm: to_the_end(model, probes, text)
        for arm, text in (("base", ""), ("scaffold", scaffold), ("full", full))
    }
    ended = time.process_time() - began
    for arm, replies in whole.items():
        scores = [contains(text, p.answers) for text, p in zip(replies, probes, strict=True)]
        same = sum(a == r.score for a, r in zip(scores, report.arms[arm], strict=True))
        print(f"{arm:10} {same} of {len(probes)} score alike")
    print(f"to_the_end={ended:.1f} settled={settled:.1f} ratio={ended / settled:.2f}")


if __name__ == "__main__":
    main()
