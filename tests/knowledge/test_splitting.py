"""Claims about splitting: nothing is lost, sentences and passages end where a reader would."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorewright.errors import ConfigError
from lorewright.knowledge import splitting

HANDBOOK = """# Handbook

Dr. Denise Bell opens the office at 8.45 a.m. on Mondays. The KX-4.2 is in use by J. Smith.
It costs 3.50 EUR. "Why?" she asked. See fig. 3 for more, e.g. Table 2.

## Rules

- Knock first. Then wait.
- Be kind
12) Leave by 17:30.

| room | key |
|------|-----|
| 4.2  | B   |

```
# not a heading

x = 1. Y = 2
```

Closing
=======
Ask Mr. Roger at ext. 12! Then go. No. He left.
"""

TEXTS = st.text(
    st.one_of(st.sampled_from(list("aB1 .\n#-=`|!?\t。")), st.characters(codec="utf-8")),
    max_size=200,
)


def gaps(pieces: tuple[str, ...], text: str) -> list[str]:
    """Return what lies before, between and after the pieces, in order."""
    position, between = 0, []
    for piece in pieces:
        start = text.index(piece, position)
        between.append(text[position:start])
        position = start + len(piece)
    return [*between, text[position:]]


@given(TEXTS)
@example(HANDBOOK)
def test_sentences_lose_nothing_but_white_space(text: str) -> None:
    pieces = splitting.sentences(text)
    assert all(not gap.strip() for gap in gaps(pieces, text))
    assert all(piece and piece == piece.strip() for piece in pieces)


@given(TEXTS.filter(str.strip), st.integers(1, 80))
@example(HANDBOOK, 60)
def test_passages_lose_nothing_but_white_space(text: str, max_chars: int) -> None:
    pieces = splitting.passages(text, max_chars=max_chars)
    assert all(not gap.strip() for gap in gaps(pieces, text))
    assert all(piece.strip() and len(piece) <= max_chars for piece in pieces)


def test_sentences_of_a_handbook() -> None:
    assert splitting.sentences(HANDBOOK) == (
        "# Handbook",
        "Dr. Denise Bell opens the office at 8.45 a.m. on Mondays.",
        "The KX-4.2 is in use by J. Smith.",
        "It costs 3.50 EUR.",
        '"Why?" she asked.',
        "See fig. 3 for more, e.g. Table 2.",
        "## Rules",
        "- Knock first. Then wait.",
        "- Be kind",
        "12) Leave by 17:30.",
        "| room | key |",
        "|------|-----|",
        "| 4.2  | B   |",
        "```\n# not a heading\n\nx = 1. Y = 2\n```",
        "Closing\n=======",
        "Ask Mr. Roger at ext. 12!",
        "Then go.",
        "No.",
        "He left.",
    )


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("Open until 5 p.m. The door locks.", 2),
        ("Open until 5 p.m. on Monday.", 1),
        ("The U.S. Army and J. R. Smith.", 1),
        ("Version 3.10 came. 45 people saw it.", 2),
        ("他来了。我走了！好", 3),
        ("She said “Go.” He went.", 2),
        ("Wait... Fine… Ok", 3),
        ("wrapped\nline. Next\none.", 2),
    ],
)
def test_sentence_ends(text: str, n: int) -> None:
    assert len(splitting.sentences(text)) == n


def test_a_heading_begins_a_passage_and_is_not_left_alone() -> None:
    text = "# A\n\n## B\n\nOne two.\n\nThree.\n\n## C\n\nFour."
    assert splitting.passages(text) == (
        "# A\n\n## B\n\nOne two.\n\nThree.",
        "## C\n\nFour.",
    )


def test_a_long_paragraph_is_cut_between_sentences_then_words() -> None:
    text = "One two three. Four five six seven eight. Abcdefghijklmnopqrstuvwxyz"
    assert splitting.passages(text, max_chars=16) == (
        "One two three.",
        "Four five six",
        "seven eight.",
        "Abcdefghijklmnop",
        "qrstuvwxyz",
    )


def test_passages_need_at_least_one_character() -> None:
    with pytest.raises(ConfigError, match="max_chars is 0"):
        splitting.passages("text", max_chars=0)


def test_splitting_takes_linear_time() -> None:
    for text in ("A sentence that ends. " * 50_000, "A line that ends.\n" * 50_000):
        assert len(splitting.sentences(text)) == 50_000
        assert len(splitting.passages(text)) > 700


def test_headings_travel_with_passages() -> None:
    text = "# Handbook\n\nAbout.\n\n"
    text += "## Backups\n\nAt three.\n\n### Keys\n\nNine.\n\n## Ropes\n\nFour."
    assert splitting.headed_passages(text, title="Handbook") == (
        "# Handbook\n\nAbout.",
        "# Handbook — Backups\n\nAt three.",
        "# Handbook — Backups — Keys\n\nNine.",
        "# Handbook — Ropes\n\nFour.",
    )
    assert splitting.headed_passages("Text.", title="Handbook") == ("# Handbook\n\nText.",)
    assert splitting.headed_passages("Text.") == ("Text.",)


def test_headed_passages_fit_and_lose_no_text() -> None:
    body = "The mill is old. " * 60
    text = f"# {'Long title ' * 10}\n\n## Part\n\n{body}"
    headed = splitting.headed_passages(text, max_chars=200)
    assert all(len(passage) <= 200 and passage.startswith("# Part\n\n") for passage in headed)
    assert "".join(p.partition("\n\n")[2] for p in headed).count("mill") == 60
