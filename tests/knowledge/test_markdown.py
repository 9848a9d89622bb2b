"""Claims about Markdown: what is no knowledge goes with a note, questions and tables are learnt."""

from pathlib import Path

import pytest

from lorewright.errors import DataError
from lorewright.knowledge.data import Document
from lorewright.knowledge.markdown import (
    questions_and_answers,
    with_tables_as_sentences,
    without_markup,
)
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.knowledge.selfstudy import Study, phrasing_named, write_pairs
from lorewright.knowledge.splitting import headed_passages, sentences

FAQ = """---
title: FAQ
review_token: "zk-441"
---
# Dredge Office
<!-- internal
only -->
## Who is the head of the Dredge Office?

Lotta Brisk.

**When does it open?**
At 8:15.

## Prices

| Berth | Price | Max length |
|---|---|---|
| Small | 20 EUR | 8 m |
| Large | 45 EUR | |

```html
<!-- kept -->
| a | b |
|---|---|
| c | d |
```
"""


def test_front_matter_and_comments_are_no_knowledge(tmp_path: Path) -> None:
    path = tmp_path / "faq.md"
    path.write_text(FAQ)
    knowledge = read_knowledge(path)
    (document,) = knowledge.documents
    assert "zk-441" not in document.text and "internal" not in document.text
    assert "<!-- kept -->" in document.text and document.title == "Dredge Office"
    assert len(knowledge.notes) == 2
    assert Document.read(path).text == document.text


def test_question_headings_are_facts_of_the_document(tmp_path: Path) -> None:
    path = tmp_path / "faq.md"
    path.write_text(FAQ)
    facts = read_knowledge(path).facts
    assert [(fact.question, fact.answer, fact.source) for fact in facts] == [
        ("Who is the head of the Dredge Office?", "Lotta Brisk.", "faq"),
        ("When does it open?", "At 8:15.", "faq"),
    ]


@pytest.mark.parametrize(
    "body", ["One.\n\nTwo.", "- One.\n- Two.", "| a | b |", "word " * 100, "```\ncode\n```", ""]
)
def test_only_one_short_paragraph_is_an_answer(body: str) -> None:
    assert not list(questions_and_answers(f"# Why?\n\n{body}\n\n# Next\n\nText.\n"))


def test_rows_of_tables_are_sentences() -> None:
    text = with_tables_as_sentences(FAQ)
    assert "The price of Small is 20 EUR. The max length of Small is 8 m." in text
    assert "The price of Large is 45 EUR.\n" in text and "| c | d |" in text
    assert with_tables_as_sentences("a | b\n\nno table") == "a | b\n\nno table"


@pytest.mark.parametrize(
    ("line", "note"),
    [
        (f"![plot](data:image/png;base64,{'iVBOR' * 800})", "image 'plot' embedded in line 3"),
        (f"The code is {'9f3a' * 3000}.", "line 3 is not read: 12013 characters"),
        ("a=function(b){return b};" * 50, "line 3 is not read"),
    ],
)
def test_data_is_left_out_by_name(tmp_path: Path, line: str, note: str) -> None:
    text, notes = without_markup(f"One fact.\n\n{line}\n\nAnother.\n")
    assert len(notes) == 1 and note in notes[0]
    assert text.split() in (["One", "fact.", "Another."], ["One", "fact.", "plot", "Another."])
    path = tmp_path / "blob.md"
    path.write_text("9f3a" * 3000)
    with pytest.raises(DataError, match="line 1 is not read"):
        read_knowledge(path)


@pytest.mark.parametrize(
    "line",
    [
        "A long sentence of words. " * 200,
        "一个很长的段落，没有空格。" * 100,
        "https://a.b/" + "c" * 300,
    ],
)
def test_long_prose_is_read(line: str) -> None:
    assert without_markup(line) == (line, [])


@pytest.mark.parametrize(
    ("text", "reply", "answer"),
    [
        ("The head is Dr. Ruth Cole.", "Dr", "Dr. Ruth Cole"),
        ("The head is Dr. Ruth Cole.", "Dr.", "Dr. Ruth Cole"),
        ("The keeper is J. R. Hart.", "J", "J. R. Hart"),
        ("The keeper is J. R. Hart.", "J. R", "J. R. Hart"),
        ("The grade is B. The next is C.", "B", "B"),
        ("The keeper is Aoife Byrne.", "Aoife", "Aoife Byrne"),
        ("Aoife Byrne runs it. Call Aoife Byrne.", "Aoife", "Aoife Byrne"),
        ("The head is Vincent van Dyck, since May.", "Vincent", "Vincent van Dyck"),
        ("Aoife Byrne runs it. Aoife is kind.", "Aoife", "Aoife"),
        ("In Bergen Aoife Byrne runs it.", "Bergen", "Bergen"),
        ("The colour is Teal.", "Teal", "Teal"),
        ("On Monday Ada Hart opens.", "Monday", "Monday"),
        ("Paris Saint plays in Paris.", "Paris", "Paris"),
    ],
)
def test_titles_and_initials_are_kept_whole(text: str, reply: str, answer: str) -> None:
    def ask_llm(prompts: list[str]) -> list[str]:
        return [f"Q: Who? A: {reply}" for _ in prompts]

    study = Study(Document("d", text), ask_llm, phrasing_named("pocket"))
    assert write_pairs(study, (1,)).grounded[0].answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "|" * 200_000 + "\n",
        "a | b\n" + " " * 200_000 + "x\n",
        "# " + " " * 200_000,
        "<!-- " * 50_000,
        "<!-- a -->" + "<!-- " * 50_000,
        "![" * 100_000,
        "![a](data:" * 30_000,
        "." * 200_000,
        "**a? " * 50_000,
        "## a?\n\n" * 30_000,
    ],
)
def test_no_text_takes_more_than_time_in_proportion(text: str) -> None:
    whole, _ = without_markup(text)
    list(questions_and_answers(whole))
    headed_passages(with_tables_as_sentences(whole))
    sentences(whole)
