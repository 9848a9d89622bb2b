"""How the embedded base was made: the world, its batches and the recipe, in small."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorewright.knowledge.data import Document
from lorewright.knowledge.readers.probes import read_probes
from lorewright.knowledge.selfstudy import PHRASINGS, parse_pairs

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "pocket"))

import batches  # noqa: E402 - the recipe is a folder of scripts, found by path
import world  # noqa: E402

SHARES = {name: share for name, (_, share) in world.TASKS.items()}


@given(st.integers(0, 10**6), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_a_passage_states_every_one_of_its_facts(seed: int, n: int) -> None:
    page = world.passage(random.Random(seed), n)
    assert len(page.statements) == n
    assert all(item.value in page.text for item in page.statements)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_an_absent_statement_is_not_in_the_passage(seed: int) -> None:
    rng = random.Random(seed)
    page = world.passage(rng, 4)
    item = world.absent(rng, page)
    assert (item.subject, item.relation.name) not in {
        (s.subject, s.relation.name) for s in page.statements
    }


def test_held_out_question_forms_never_occur_in_training_conversations() -> None:
    rng = random.Random(1)
    held = [form.format(s="@", r="@", v="@").split("@")[0] for form in world.HELD_ASK]
    held += [
        form.split("{")[0]
        for row in world.RELATIONS
        for form in [row.held_ask]
        if form.split("{")[0]
    ]
    trained = {ask.split("{")[0] for row in world.RELATIONS for ask in row.asks} | {
        a.split("{")[0] for a in world.ASK
    }
    unique = [
        start
        for start in held
        if len(start) > 8
        and not any(t.startswith(start) or start.startswith(t) for t in trained if t)
    ]
    assert len(unique) > 15
    for _ in range(400):
        for turn in world.conversation(rng, rng.randint(1, 8), SHARES):
            question = turn.user.rsplit("\n\n", 1)[-1]
            assert not any(question.startswith(start) for start in unique), question


def test_the_library_asks_the_base_in_the_words_it_was_trained_on() -> None:
    words = PHRASINGS["pocket"]
    assert words.pairs.format(text="X", number=3) == world.pairs_prompt("X", 3)
    assert words.rewrite.format(text="X", number=2) == world.rewrite_prompt("X", 2)
    assert words.summary.format(text="X") == world.summary_prompt("X")


def test_the_pairs_that_the_base_is_trained_to_write_are_those_that_the_library_reads() -> None:
    page = world.passage(random.Random(5), 6)
    found = parse_pairs(world.pairs_reply(page.statements, 2))
    assert found == [(world.set_ask(item, 2), item.value) for item in page.statements]


def test_the_same_seed_gives_the_same_conversation() -> None:
    first, second = (world.conversation(random.Random("a"), 5, SHARES) for _ in range(2))
    assert first == second


def test_the_handbook_is_not_of_the_world_and_its_stricter_probes_are_in_held_forms() -> None:
    text = Document.read(ROOT / "examples" / "handbook.md").text
    probes = [
        p
        for p in read_probes(ROOT / "examples" / "handbook.probes.jsonl")
        if p.kind == "paraphrase"
    ]
    assert len(probes) >= 96
    assert all(p.answers[0] in text for p in probes)
    new = [p for p in probes if p.id.startswith("new-")]
    assert len(new) >= 96
    starts = [
        form.split("{")[0] for form in (*world.HELD_ASK, *(r.held_ask for r in world.RELATIONS))
    ]
    assert all(any(p.question.lower().startswith(s.lower()) for s in starts) for p in new)


def test_batches_tokenise_as_the_chat_template_does() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "lorewright" / "models" / "pocket")
    talk = world.reading(random.Random(3), 3)
    ((ids, weights),) = batches.tokenise(tokenizer, [talk])
    turns = [
        m
        for t in talk
        for m in ({"role": "user", "content": t.user}, {"role": "assistant", "content": t.reply})
    ]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer(whole, add_special_tokens=False)["input_ids"] == ids
    assert len(ids) == len(weights)


def test_every_batch_keeps_to_its_budget_and_its_longest_row() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "lorewright" / "models" / "pocket")
    found = batches.pool(
        tokenizer, "t", len(batches.LEVELS) - 1, n_batches=4, batch_tokens=2048, max_tokens=1024
    )
    assert all(
        b.ids_BT.shape[1] <= 1024 and b.ids_BT.numel() <= 2048 + 8 * len(b.ids_BT) for b in found
    )


@pytest.mark.slow
def test_training_that_is_interrupted_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    def train(folder: Path, steps: int, *, total: int = 4) -> None:
        command = [
            sys.executable,
            str(ROOT / "pocket" / "train.py"),
            "--out",
            str(folder),
            "--steps",
            str(total),
            "--stop-after",
            str(steps),
            "--batch-tokens",
            "256",
            "--pool",
            "2",
            "--save-every",
            "1",
        ]
        subprocess.run(command, check=True, timeout=120)

    for folder in ("whole", "parts"):
        batches_folder = tmp_path / folder / "tokenizer"
        batches_folder.mkdir(parents=True)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (batches_folder / file).write_bytes(
                (ROOT / "lorewright" / "models" / "pocket" / file).read_bytes()
            )
    train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    train(tmp_path / "parts", 4)
    whole, parts = (
        torch.load(tmp_path / f / "state-0.pt", weights_only=True) for f in ("whole", "parts")
    )
    assert whole["at"] == parts["at"]
    assert all(torch.equal(whole["model"][k], parts["model"][k]) for k in whole["model"])
