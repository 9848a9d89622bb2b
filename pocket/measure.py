"""Measure what the embedded base can do, on seeds that it never trained on.

    python pocket/measure.py                     # table on the terminal, a few minutes
    python pocket/measure.py --write-card        # and lorewright/models/pocket/README.md, measured.json

Every number is a share of free-running greedy replies that are exactly right, with n and its Wilson
interval. Question forms: `trained` are those of the world; `held` are left out of the base's training.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import world
from world import Passage, Statement

from lorewright.knowledge.scoring import exact_match, is_declined
from lorewright.knowledge.selfstudy import parse_pairs
from lorewright.models.model import Model
from lorewright.recall.statistics import Proportion, wilson

CARD = Path(__file__).parent.parent / "lorewright" / "pocket"
Ask = Callable[[random.Random, Statement], str]


def pages(name: str, n_facts: int, n_pages: int) -> list[Passage]:
    """Fresh passages from a seed that training cannot draw."""
    return [
        world.passage(random.Random(f"measure-{name}-{n_facts}-{i}"), n_facts)
        for i in range(n_pages)
    ]


def reading(model: Model, n_facts: int, n: int, ask: Ask) -> Proportion:
    """Answer one question on a passage of n_facts."""
    rng = random.Random(f"measure-ask-{n_facts}")
    questions = [(page, rng.choice(page.statements)) for page in pages("read", n_facts, n)]
    outputs = model.generate(
        [f"{page.text}\n\n{ask(rng, item)}" for page, item in questions], max_new_tokens=40
    )
    return wilson(
        sum(
            int(exact_match(o, (item.value,)))
            for o, (_, item) in zip(outputs, questions, strict=True)
        ),
        n,
    )


def declining(model: Model, n_facts: int, n: int, ask: Ask) -> Proportion:
    """Decline a question that the passage does not answer; n_facts 0 = nothing to read."""
    rng = random.Random(f"measure-decline-{n_facts}")
    if n_facts == 0:
        prompts = [ask(rng, world.statements(rng, 1)[0]) for _ in range(n)]
    else:
        prompts = [
            f"{page.text}\n\n{ask(rng, world.absent(rng, page))}"
            for page in pages("absent", n_facts, n)
        ]
    return wilson(sum(map(is_declined, model.generate(prompts, max_new_tokens=40))), n)


def pairs(model: Model, n_facts: int, n_pages: int) -> tuple[Proportion, Proportion]:
    """Of the pairs written for passages, the share that are right; of the facts, the share covered.

    A pair that is written twice counts once, as a write keeps it once.
    """
    rng = random.Random(f"measure-pairs-{n_facts}")
    texts = pages("pairs", n_facts, n_pages)
    numbers = [rng.randint(1, world.N_SETS) for _ in texts]
    prompts = [world.pairs_prompt(page.text, k) for page, k in zip(texts, numbers, strict=True)]
    right = written = covered = 0
    for page, k, reply in zip(
        texts, numbers, model.generate(prompts, max_new_tokens=400), strict=True
    ):
        pairs = set(parse_pairs(reply))
        true = {(world.set_ask(item, k), item.value) for item in page.statements}
        written += len(pairs)
        right += sum(pair in true for pair in pairs)
        covered += len(true & pairs)
    return wilson(right, written), wilson(covered, n_facts * n_pages)


def texts(model: Model, task: world.Task, n_facts: int, n: int, name: str) -> Proportion:
    """Replies equal to the world's own, for tasks with a single right reply."""
    turns = [task(random.Random(f"measure-{name}-{n_facts}-{i}"), n_facts)[0] for i in range(n)]
    outputs = model.generate([turn.user for turn in turns], max_new_tokens=400)
    return wilson(sum(o == turn.reply for o, turn in zip(outputs, turns, strict=True)), n)


def reciting(model: Model, draw: Callable[[random.Random], str], n: int, name: str) -> Proportion:
    """Strings repeated exactly."""
    strings = [draw(random.Random(f"measure-{name}-{i}")) for i in range(n)]
    outputs = model.generate([world.recite_prompt(s) for s in strings], max_new_tokens=64)
    return wilson(sum(o == s for o, s in zip(outputs, strings, strict=True)), n)


def _hex(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789abcdef") for _ in range(16))


def together(shares: dict[str, Proportion], start: str, within: str) -> Proportion:
    """The rows so far whose name begins and contains so, as one."""
    rows = [p for name, p in shares.items() if name.startswith(start) and within in name]
    return wilson(sum(round((p.mean or 0) * p.n) for p in rows), sum(p.n for p in rows))


def measure(model: Model, n: int) -> dict[str, Proportion]:
    """Every skill on the card, by name."""
    shares: dict[str, Proportion] = {}
    for n_facts in (1, 3, 6, 12, 24):
        for form, ask in (("trained", world.ask), ("held", world.held_ask)):
            shares[f"reading, {n_facts} facts, {form} forms"] = reading(model, n_facts, n, ask)
    for n_facts in (0, 3, 6, 12, 24):
        for form, ask in (("trained", world.ask), ("held", world.held_ask)):
            shares[f"declining, {n_facts} facts, {form} forms"] = declining(model, n_facts, n, ask)
    for form in ("trained", "held"):
        shares[f"declining, all of these, {form} forms"] = together(shares, "declining", form)
    for n_facts in (1, 3, 6, 10):
        right, covered = pairs(model, n_facts, max(20, n // n_facts))
        shares[f"pairs right, {n_facts} facts"] = right
        shares[f"facts covered by pairs, {n_facts} facts"] = covered
    for what in ("pairs right", "facts covered by pairs"):
        shares[f"{what}, all of these"] = together(shares, what, "facts")
    shares["rewriting, 4 facts"] = texts(model, world.rewriting, 4, n // 2, "rewrite")
    shares["summary, 4 facts"] = texts(model, world.summary, 4, n // 2, "summary")
    shares["rephrasing a question"] = texts(model, world.rephrasing, 1, n // 2, "rephrase")
    shares["reciting 10 digits"] = reciting(model, lambda rng: world.digits(rng, 10), n, "digits")
    shares["reciting 16 hex digits"] = reciting(model, _hex, n, "hex")
    shares["reciting a URL"] = reciting(
        model, lambda rng: f"https://{world.VALUES['url'](rng)}?id={world.digits(rng, 4)}", n, "url"
    )
    shares["reciting a line of code"] = reciting(model, _code, n, "code")
    return shares


def _code(rng: random.Random) -> str:
    a, b, c = (rng.choice(world.WORDS) for _ in range(3))
    return f"def {a}({b}, {c}={world.digits(rng, 2)}): return {b}[{c}] + {world.digits(rng, 3)}"


def card(shares: dict[str, Proportion], about: dict[str, Any]) -> str:
    """The model card, with the measured table."""
    rows = "\n".join(
        f"| {name} | {p.mean:.3f} | {p.low:.3f} – {p.high:.3f} | {p.n} |"
        for name, p in shares.items()
    )
    head = (Path(__file__).parent / "card.md").read_text()
    return head.replace("{{measured}}", rows).replace("{{about}}", json.dumps(about))


def main() -> None:
    """Measure, print, and write the card on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--n", type=int, default=300, help="questions a row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write-card", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = Model.load(args.model)
    started = time.monotonic()
    shares = measure(model, args.n)
    for name, p in shares.items():
        print(f"{name:44s} {p}")
    about = {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "digest": model.digest[:16],
        "seconds": round(time.monotonic() - started),
        "n": args.n,
    }
    print(json.dumps(about))
    if args.write_card:
        (CARD / "README.md").write_text(card(shares, about))
        rows = {
            name: {"n": p.n, "share": p.mean, "low": p.low, "high": p.high}
            for name, p in shares.items()
        }
        (CARD / "measured.json").write_text(json.dumps({"about": about, "skills": rows}, indent=1))


if __name__ == "__main__":
    main()
