"""Claims about looking for texts in files: escapes hide nothing, chance finds nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from lorewright.memory.leftovers import Leftover, runs_in, scan, wanted

SENTENCE = 'Café "Zoë" opens\tat 7.30,\nsays C:\\new\\tills; 🦊 Mira Voss signs.'


def is_in(content: bytes | str, text: str) -> bool:
    return bool(runs_in(content, wanted([text])))


@pytest.mark.parametrize(
    "content",
    [
        SENTENCE,
        SENTENCE.encode(),
        json.dumps({"text": SENTENCE}),
        json.dumps({"text": SENTENCE}, ensure_ascii=False),
        json.dumps({"reply": json.dumps({"text": SENTENCE})}),
        SENTENCE.upper(),
        f"| {SENTENCE.replace('|', ' ')} |",
        "…and " + SENTENCE[:40] + "...",
    ],
)
def test_a_sentence_is_recognised_in_every_encoding(content: bytes | str) -> None:
    assert is_in(content, SENTENCE)


@given(st.text(min_size=1, max_size=60), st.booleans())
def test_every_text_that_is_long_enough_is_recognised_in_its_own_json(
    text: str, ascii: bool
) -> None:
    try:
        content = json.dumps({"k": ["x", text]}, ensure_ascii=ascii).encode()
    except UnicodeEncodeError:
        return
    sought = wanted([text])
    assert sought.n_short == 1 or not sought.runs or runs_in(content, sought) == sought.runs


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"seconds": 0.12345}', "12345"),
        ("steal the steals", "teals"),
        ("KX-410", "KX-41"),
        ("the code of Alder is KX-41", "the code of Gannet is KX-42"),
    ],
)
def test_a_part_of_a_word_or_number_is_no_leftover(content: str, text: str) -> None:
    assert not is_in(content, text)


def test_texts_too_short_are_counted_and_not_searched_for() -> None:
    sought = wanted(["teal", "4 May", "4 May", "B 12", "..."])
    assert (sought.n_texts, sought.n_short) == (4, 4) and not sought.runs
    assert wanted(["5 May 1"]).n_short == 0


def test_a_long_text_is_recognised_by_any_five_of_its_words() -> None:
    words = [f"word{i}" for i in range(12)]
    sought = wanted([" ".join(words)])
    assert len(sought.runs) == 8
    assert runs_in(" ".join(words[6:11]), sought) == {tuple(words[6:11])}
    assert not runs_in(" ".join(words[6:10]), sought)
    assert not runs_in(" ".join(words[6:11]), sought.without([tuple(words[6:11])]))


def test_tensors_are_read_where_something_can_be_printed(tmp_path: Path) -> None:
    noise = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    clean = save({"a": noise})
    (tmp_path / "meta.safetensors").write_bytes(save({"a": noise}, {"by": "Mira"}))
    (tmp_path / "raw.bin").write_bytes(clean + b"\0signed by Mira Voss today\0")
    (tmp_path / "clean.safetensors").write_bytes(clean)
    rng = random.Random(0)
    some = ["".join(rng.choices("abcdefghij0123456789", k=5)) for _ in range(2000)]
    assert not scan(tmp_path, wanted(some)).leftovers
    seen = scan(tmp_path, wanted(["Mira Voss"]))
    assert seen.leftovers == (Leftover(Path("raw.bin"), ("mira", "voss")),)
    (tmp_path / "meta.safetensors").write_bytes(save({"a": noise}, {"by": "Mira Voss"}))
    assert len(scan(tmp_path, wanted(["Mira Voss"])).leftovers) == 2


def test_hidden_and_nested_files_are_read_and_links_are_followed(tmp_path: Path) -> None:
    inside = tmp_path / "atlas"
    (inside / "runs" / ".x").mkdir(parents=True)
    (inside / "runs" / ".x" / ".hidden").write_text("Mira Voss")
    outside = tmp_path / "outside"
    outside.write_text("Mira Voss")
    (inside / "link").symlink_to(outside)
    seen = scan(inside, wanted(["Mira Voss"]))
    assert [str(each.path) for each in seen.leftovers] == ["link", "runs/.x/.hidden"]
    assert (seen.n_files, seen.n_bytes) == (2, 18)
    assert not scan(inside, wanted(["Mira Voss"]), files=[]).n_files
