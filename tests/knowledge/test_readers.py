"""Claims about files into knowledge: every shape that is read, everything that is refused."""

import configparser
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright import files
from lorewright.errors import DataError
from lorewright.knowledge.data import DOCUMENT_SUFFIXES, Document, Fact, Knowledge, Probe
from lorewright.knowledge.readers.cells import Row
from lorewright.knowledge.readers.items import Item
from lorewright.knowledge.readers.probes import read_probes
from lorewright.knowledge.readers.read import READERS, read_knowledge
from lorewright.knowledge.readers.rows import LAYOUTS
from lorewright.knowledge.readers.shapes import SHAPES

SHARED = Path(__file__).parents[3] / "shared" / "data"
WORDS = st.text(
    st.sampled_from(list("ab,;\"'\t"))
    | st.characters(codec="utf-8", categories=["L", "P", "S", "N"]),
    max_size=20,
).map(lambda text: " ".join(text.split()) or "q")


def write(path: Path, content: Any) -> Path:
    """Write text as it is, a list to .jsonl as lines, anything else as JSON."""
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def squad(*questions: dict[str, Any], context: str = "Ada was born in London.") -> dict[str, Any]:
    return {"data": [{"title": "Ada", "paragraphs": [{"context": context, "qas": questions}]}]}


def refusal(path: Path) -> str:
    """Return the message with which reading a path is refused."""
    with pytest.raises(DataError) as caught:
        read_knowledge(path)
    return str(caught.value)


# --- shapes


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?", "answer": "Ada", "extra": [1, {}]},
        {"question": " Who? ", "answers": ["Ada", "Ada"]},
        {"Question": "Who?", "Answer": "Ada\n"},
        {"question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}},
        {"query": "Who?", "target": "Ada", "target_len": 4},
        {"prompt": "Who?", "completion": " Ada"},
        {
            "prompt": [{"role": "user", "content": "Who?"}],
            "completion": [{"role": "assistant", "content": "Ada"}],
        },
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": "Ada", "weight": 1},
            ]
        },
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada"}]},
        {"instruction": "Who?", "input": "", "output": "Ada"},
        {"instruction": "Who?", "context": "", "response": "Ada", "category": "open_qa"},
        {"prompt": "Who?", "chosen": "Ada", "rejected": "Grace"},
        {
            "chosen": [
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": "Ada"},
            ],
            "rejected": [],
        },
        {"text": "Below is a request.\n\n### Instruction:\nWho?\n\n### Response:\nAda</s>"},
        {"text": "USER: Who?\nASSISTANT: Ada"},
        {"text": "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAda<|im_end|>\n"},
        {"text": "<s>[INST] Who? [/INST] Ada </s>"},
        {"text": "Question: Who? Answer: Ada"},
        {"text": "\nQuestion: Who?\nAnswer: Ada\n"},
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_every_shape_of_row_gives_the_fact(
    tmp_path: Path, row: dict[str, Any], suffix: str
) -> None:
    path = write(tmp_path / f"a{suffix}", [row])
    assert read_knowledge(path).facts == (Fact("a-1", "Who?", "Ada", source="a"),)


def test_a_row_may_give_aliases_paraphrases_id_and_source(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "question": "Who?",
        "answer": "Ada",
        "aliases": ["Ada L.", "Ada"],
        "paraphrases": "Which person?",
        "source": "handbook",
    }
    assert read_knowledge(write(tmp_path / "a.jsonl", [row])).facts == (
        Fact("7", "Who?", "Ada", ("Ada L.",), ("Which person?",), "handbook"),
    )


def test_numbers_keep_the_digits_as_written(tmp_path: Path) -> None:
    text = '{"question": "Version?", "answer": 3.10}\n{"question": "How many?", "answer": 12}'
    facts = read_knowledge(write(tmp_path / "a.jsonl", text)).facts
    assert [fact.answer for fact in facts] == ["3.10", "12"]


def test_text_rows_are_documents(tmp_path: Path) -> None:
    rows = [{"text": " As it is.\n", "title": "T"}, {"text": "Question: a Answer: b Question: c"}]
    assert read_knowledge(write(tmp_path / "a.jsonl", rows)).documents == (
        Document("a-1", " As it is.\n", "T"),
        Document("a-2", "Question: a Answer: b Question: c"),
    )


def test_squad_gives_documents_and_facts_and_keeps_the_unanswerable(tmp_path: Path) -> None:
    answers = [{"text": "London"}, {"text": "London"}, {"text": "in London", "answer_start": 13}]
    content = squad(
        {"id": "q1", "question": "Where?", "answers": answers, "is_impossible": False},
        {"id": "q2", "question": "When?", "answers": [], "is_impossible": True},
    )
    assert read_knowledge(write(tmp_path / "a.json", content)) == Knowledge(
        (Document("a-1-1", "Ada was born in London.", "Ada", {"unanswerable": ["When?"]}),),
        (Fact("q1", "Where?", "London", ("in London",), source="a-1-1"),),
    )


def test_every_shape_is_read_in_every_file_of_rows(tmp_path: Path) -> None:
    (article,) = squad({"question": "Where?", "answers": [{"text": "London"}]})["data"]
    knowledge = read_knowledge(write(tmp_path / "a.jsonl", [article]))
    assert knowledge == read_knowledge(write(tmp_path / "a.json", [article]))
    assert [fact.answer for fact in knowledge.facts] == ["London"]


def test_blank_parts_of_a_cell_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "question,answer,aliases\nWho?,Ada,\nWhat?,x,y| |z\n")
    assert [fact.aliases for fact in read_knowledge(path).facts] == [(), ("y", "z")]


def test_json_may_hold_one_row_or_data_or_lines(tmp_path: Path) -> None:
    row = {"question": "Who?", "answer": "Ada"}
    one = read_knowledge(write(tmp_path / "a.json", row))
    assert one == read_knowledge(write(tmp_path / "a.json", {"data": [row]}))
    assert one == read_knowledge(write(tmp_path / "a.json", json.dumps(row) + "\n"))
    lines = json.dumps(row) + '\n{"question": "What?", "answer": "x"}\n'
    assert len(read_knowledge(write(tmp_path / "a.json", lines)).facts) == 2


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_separators(tmp_path: Path, mark: str) -> None:
    text = f"Question{mark}Answer{mark}aliases\nWho?{mark}Ada{mark}A. L.|Countess\n\n"
    assert read_knowledge(write(tmp_path / "a.csv", text)).facts == (
        Fact("a-2", "Who?", "Ada", ("A. L.", "Countess"), source="a"),
    )


def test_csv_cells_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    text = 'text\n"In Macau, ""x""\nis spoken"\nPlain\n'
    assert read_knowledge(write(tmp_path / "a.csv", text)).documents == (
        Document("a-2", 'In Macau, "x"\nis spoken'),
        Document("a-4", "Plain"),
    )


def test_csv_holds_long_documents(tmp_path: Path) -> None:
    text = "word " * 40_000
    (document,) = read_knowledge(write(tmp_path / "a.csv", f"text\n{text}\n")).documents
    assert document.text == text


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, unique_by=lambda pair: pair[0]))
def test_csv_round_trip(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *pairs])
    facts = read_knowledge(path).facts
    assert [(fact.question, fact.answer) for fact in facts] == pairs


def test_what_dump_jsonl_wrote_reads_back_the_same(tmp_path: Path) -> None:
    knowledge = Knowledge(
        (Document("d", "Question: a Answer: b", "T", {"page": 4}), Document("e", " text ")),
        (Fact("f", "q", "x", ("y",), ("r",), "d"), Fact("g", "r", "x", source="")),
    )
    path = tmp_path / "a.jsonl"
    files.dump_jsonl([*knowledge.documents, *knowledge.facts], path)
    assert read_knowledge(path) == knowledge
    assert read_knowledge(path).digest() == knowledge.digest()


# --- folders


def test_a_folder_is_the_union_of_its_readable_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path / "b.md", "# B\n\nText.")
    write(tmp_path / "a.jsonl", [{"question": "Who?", "answer": "Ada"}])
    write(tmp_path / "sub" / "b.txt", "Other text.")
    write(tmp_path / "sub" / "picture.png", "no")
    write(tmp_path / ".git" / "c.md", "hidden")
    knowledge = read_knowledge(tmp_path)
    assert [document.id for document in knowledge.documents] == ["b", "sub-b"]
    assert [fact.id for fact in knowledge.facts] == ["a-1"]
    assert read_knowledge(tmp_path / "b.md").documents == knowledge.documents[:1]


def test_a_folder_without_readable_files_is_refused(tmp_path: Path) -> None:
    assert "holds 0 files" in refusal(tmp_path)
    write(tmp_path / "picture.png", "no")
    assert "holds 1 files and none that can be read" in refusal(tmp_path)


def test_one_bad_file_refuses_the_folder_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.md", "text")
    write(tmp_path / "b.jsonl", "{")
    assert "b.jsonl line 1" in refusal(tmp_path)


# --- refusals


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q2", "ans', "a.jsonl line 2"),
        ("a.json", '[\n{"question": "q",\n"answer": "a"', "a.json line 3 is not valid JSON"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.json", "[1" + "0" * 5000 + "]", "cannot be read as JSON"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", "4", "holds a int"),
        ("a.json", "[4]", "item 1 is a int"),
        ("a.json", '{"data": "x"}', "holds a dict"),
        ("a.csv", "question,answer\n", "holds no rows"),
        ("a.csv", 'question,answer\nq,"a\nb', "line 2 is not valid CSV"),
        ("a.csv", "question,answer\nq,a,b", "line 2 has 3 fields and the header 2"),
        ("a.csv", "question,answer,Answer\nq,a,b", "names a column twice"),
        ("a.csv", "question,answer,answer\nq,a,b", "names a column twice"),
        ("a.csv", "question,answer\nq,", "line 2: fact 'a-2' has an empty answer"),
        ("a.jsonl", '{"a": 1, "b": 2}', "line 1 has keys a, b, which is no known shape"),
        ("a.jsonl", "{}", "has keys none"),
        ("a.jsonl", '{"question": "", "answer": "a"}', "empty question"),
        ("a.jsonl", '{"question": "q", "answer": " "}', "empty answer"),
        ("a.jsonl", '{"question": "q", "answers": []}', "empty answer"),
        ("a.jsonl", '{"text": "Question: q Answer: "}', "empty answer"),
        ("a.jsonl", '{"text": " "}', "empty text"),
        ("a.jsonl", '{"question": "q", "answer": null}', "empty answer"),
        ("a.jsonl", '{"question": "q", "answer": true}', "'answer' of type bool"),
        ("a.jsonl", '{"question": "q", "answer": NaN}', "'answer' of type float"),
        ("a.jsonl", '{"question": {"a": 1}, "answer": "a"}', "'question' of type dict"),
        ("a.jsonl", '{"question": "q", "answer": "\\ud800"}', "surrogate"),
        ("a.jsonl", '{"question": "q", "answer": "a", "aliases": [""]}', "empty alias"),
        ("a.jsonl", '{"text": "t", "meta": 4}', "meta of type int"),
        ("a.jsonl", '{"messages": "hello"}', "no list of objects"),
        ("a.jsonl", '{"messages": []}', "messages of nobody"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "q"}]}', "messages of user"),
        ("a.json", '{"data": [{"paragraphs": 4}]}', "'paragraphs' must be a list"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "c"}]}]}', "'qas' must be a list"),
        ("a.odt", "text", "ends in '.odt'"),
        ("a", "text", "ends in 'nothing'"),
        ("a.md", "", "is empty"),
        ("a.jsonl", "", "is empty"),
        ("a.csv", "\n", "is empty"),
    ],
)
def test_refusals_say_where_and_what(tmp_path: Path, name: str, content: str, message: str) -> None:
    refused = refusal(write(tmp_path / name, content))
    assert message in refused and name in refused


def test_missing_paths_are_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "none.md")


def test_an_unknown_shape_lists_the_known_ones(tmp_path: Path) -> None:
    papers = [{"id": 0, "title": "t", "introduction": "i", "QA": []}]
    message = refusal(write(tmp_path / "a.json", papers))
    assert "keys id, title, introduction, qa" in message
    assert all(shape in message for shape in SHAPES)


def test_contradictory_answers_are_refused_with_the_first(tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "answer": "Ada"},
        {"question": "What?", "answer": "x"},
        {"question": " Who? ", "answer": "Grace"},
        {"question": "What?", "answer": "y"},
        {"question": "What?", "answer": "x"},
    ]
    message = refusal(write(tmp_path / "a.jsonl", rows))
    assert message.startswith("questions with contradictory answers: 2, first 'Who?' -> 'Ada'")
    assert "line 1)" in message and "'Grace'" in message and "line 3)" in message


def test_exact_duplicates_count_once_with_a_note(tmp_path: Path) -> None:
    rows = [{"query": "Ada:", "target": "1"}, {"query": "B:", "target": "2"}]
    knowledge = read_knowledge(write(tmp_path / "a.jsonl", [*rows, rows[0]]))
    assert [fact.answer for fact in knowledge.facts] == ["1", "2"]
    (note,) = knowledge.notes
    assert "1 fact stood there more than once" in note and "line 3" in note


def keepers(*pairs: tuple[str, str]) -> dict[str, Any]:
    """SQuAD with a paragraph for each context and answer, all asked the same."""
    parts = (
        squad({"question": "Who is its keeper?", "answers": [{"text": answer}]}, context=context)
        for context, answer in pairs
    )
    return {"data": [article for part in parts for article in part["data"]]}


def test_a_question_that_each_passage_answers_otherwise_is_left_to_the_passages(
    tmp_path: Path,
) -> None:
    content = keepers(("Ada keeps the mill.", "Ada"), ("Grace keeps the lock.", "Grace"))
    other = squad({"question": "What?", "answers": [{"text": "oats"}]}, context="Oats.")
    content["data"] += other["data"]
    knowledge = read_knowledge(write(tmp_path / "a.json", content))
    assert [fact.question for fact in knowledge.facts] == ["What?"]
    assert len(knowledge.documents) == 3
    (note,) = knowledge.notes
    assert "1 question had several answers" in note and "'Ada'" in note and "'Grace'" in note
    assert "item 1 paragraphs 1 qas 1" in note and "item 2 paragraphs 1 qas 1" in note
    alike = keepers(("Ada keeps the mill.", "Ada"), ("Its keeper is Ada.", "Ada"))
    assert [f.answer for f in read_knowledge(write(tmp_path / "b.json", alike)).facts] == ["Ada"]


def test_contradictory_answers_to_one_passage_are_refused_with_both_places(tmp_path: Path) -> None:
    content = squad(
        {"question": "Who is its keeper?", "answers": [{"text": "Ada"}]},
        {"question": "Who is its keeper?", "answers": [{"text": "Grace"}]},
    )
    message = refusal(write(tmp_path / "a.json", content))
    assert "paragraphs 1 qas 1" in message and "paragraphs 1 qas 2" in message


def test_the_unicode_form_of_a_question_does_not_tell_it_apart(tmp_path: Path) -> None:
    rows = [{"question": "Café?", "answer": "x"}, {"question": "Cafe\u0301?", "answer": "y"}]
    assert "contradictory" in refusal(write(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(
    "other", ["who signs the log", "Who signs - the log?", "WHO: signs the log"]
)
def test_questions_that_differ_in_case_or_punctuation_only_are_reported(
    tmp_path: Path, other: str
) -> None:
    rows = [{"question": "Who signs the log?", "answer": "A"}, {"question": other, "answer": "B"}]
    (note,) = read_knowledge(write(tmp_path / "a.jsonl", rows)).notes
    assert "line 1" in note and "line 2" in note and "case or punctuation" in note
    rows[1]["answer"] = "A"
    assert not read_knowledge(write(tmp_path / "a.jsonl", rows)).notes


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"question": "q", "answer": "x", "answer": "y"}', "a.jsonl line 1"),
        ("a.json", '[{"question": "q", "answer": "x", "answer": "y"}]', "a.json"),
        ("a.json", '[{"text": "t", "meta": {"k": 1, "k": 2}}]', "a.json"),
        ("a.json", '{"columns": ["question", "question"], "data": [["a", "b"]]}', "a.json"),
    ],
)
def test_a_key_twice_in_one_object_is_refused(
    tmp_path: Path, name: str, content: str, place: str
) -> None:
    message = refusal(write(tmp_path / name, content))
    assert place in message and "twice" in message


# --- chats

CHAT = [
    {"role": "system", "content": "You answer for the yard."},
    {"role": "user", "content": "Which pump?"},
    {"role": "assistant", "content": "Varga"},
    {"role": "user", "content": "Who signs?"},
    {"role": "assistant", "content": "Mirela"},
    {"role": "user", "content": "And when?"},
    {"role": "assistant", "content": "Thursday"},
]


def test_every_turn_of_a_chat_is_a_fact_with_its_history_and_alone(tmp_path: Path) -> None:
    knowledge = read_knowledge(write(tmp_path / "a.jsonl", [{"messages": CHAT}]))
    assert [(fact.question, fact.answer) for fact in knowledge.facts] == [
        ("Which pump?", "Varga"),
        ("Which pump?\nVarga\nWho signs?", "Mirela"),
        ("Who signs?", "Mirela"),
        ("Which pump?\nVarga\nWho signs?\nMirela\nAnd when?", "Thursday"),
        ("And when?", "Thursday"),
    ]
    assert any("system" in note for note in knowledge.notes)


def test_a_turn_that_is_answered_otherwise_elsewhere_is_learnt_with_its_history_only(
    tmp_path: Path,
) -> None:
    other = [
        {"role": "user", "content": "Who cleans?"},
        {"role": "assistant", "content": "Pia"},
        {"role": "user", "content": "And when?"},
        {"role": "assistant", "content": "Monday"},
    ]
    rows = [{"messages": CHAT}, {"messages": other}]
    knowledge = read_knowledge(write(tmp_path / "a.jsonl", rows))
    asked = [fact.question for fact in knowledge.facts]
    assert "And when?" not in asked and "Who signs?" in asked
    assert sum(question.endswith("And when?") for question in asked) == 2
    assert any("'Thursday'" in note and "'Monday'" in note for note in knowledge.notes)


def test_what_is_in_a_prompt_is_not_learnt_from_a_completion(tmp_path: Path) -> None:
    row = {"prompt": CHAT[1:6], "completion": CHAT[6:]}
    facts = read_knowledge(write(tmp_path / "a.jsonl", [row])).facts
    assert {fact.answer for fact in facts} == {"Thursday"}


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "no", "weight": 0},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "no", "weight": 0},
            ]
        },
    ],
)
def test_what_has_the_weight_0_is_not_learnt(tmp_path: Path, row: dict[str, Any]) -> None:
    good = {"question": "Who?", "answer": "Ada", "weight": 1}
    knowledge = read_knowledge(write(tmp_path / "a.jsonl", [good, row, row]))
    assert [fact.answer for fact in knowledge.facts] == ["Ada"]
    (note,) = knowledge.notes
    assert "line 2 and 1 more" in note and "weight 0" in note
    assert "weight 0" in refusal(write(tmp_path / "b.jsonl", [row]))


def test_pictures_in_a_chat_are_refused(tmp_path: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": "x"}}
    row = {"messages": [{"role": "user", "content": [part]}, CHAT[2]]}
    assert "part of type image_url" in refusal(write(tmp_path / "a.jsonl", [row]))


def test_an_alpaca_row_with_a_history_is_a_chat(tmp_path: Path) -> None:
    row = {"instruction": "And", "input": "when?", "output": "Now", "history": [["Who?", "Ada"]]}
    facts = read_knowledge(write(tmp_path / "a.json", [row])).facts
    assert [fact.question for fact in facts] == ["Who?", "Who?\nAda\nAnd\nwhen?", "And\nwhen?"]


# --- flat SQuAD, layouts of JSON, tables


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_flat_squad_keeps_contexts_and_what_they_do_not_answer(tmp_path: Path, suffix: str) -> None:
    context = "Ada was born in London."
    if suffix == ".csv":
        content: Any = f"context,question,answer\n{context},Where?,London\n{context},When?,\n"
    else:
        content = [
            {"context": context, "question": "Where?", "answers": {"text": ["London"]}},
            {"context": context, "question": "When?", "answers": {"text": [], "answer_start": []}},
        ]
    knowledge = read_knowledge(write(tmp_path / f"a{suffix}", content))
    (document,) = knowledge.documents
    assert document.text == context and document.meta == {"unanswerable": ["When?"]}
    (fact,) = knowledge.facts
    assert (fact.question, fact.answer, fact.source) == ("Where?", "London", document.id)


LAID_OUT: dict[str, Any] = {
    "[row, …]": [{"question": "Who?", "answer": "Ada"}],
    "{columns, data}": {"columns": ["question", "answer"], "index": [0], "data": [["Who?", "Ada"]]},
    "{data: [row, …]}": {"version": "1", "data": [{"question": "Who?", "answer": "Ada"}]},
    "{train: [row, …], test: …}": {
        "train": [{"question": "Who?", "answer": "Ada"}],
        "test": [{"question": "What?", "answer": "x"}],
    },
    "{column: {number: cell}}": {"question": {"0": "Who?"}, "answer": {"0": "Ada"}},
    "row": {"question": "Who?", "answer": "Ada"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_json_gives_its_rows(tmp_path: Path, layout: str) -> None:
    knowledge = read_knowledge(write(tmp_path / "a.json", LAID_OUT[layout]))
    assert [(fact.question, fact.answer) for fact in knowledge.facts] == [("Who?", "Ada")]
    assert LAYOUTS[layout].__doc__
    assert any("not test" in note for note in knowledge.notes) == ("test" in layout)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "sep=;\nquestion;answer;aliases\nWho?;Ada, L.;A.\n"),
        ("a.csv", "question;answer;aliases\nWho?;Ada, L.;A.;;\n"),
        ("a.csv", '"question";"answer";"note, short"\nWho?;Ada, L.\n'),
        ("a.csv", "question;answer;aliases;;\nWho?;Ada, L.\n;;;;\n"),
        ("a.tsv", "question\tanswer, here\tanswer\nWho?\tx;y\tAda, L.\n"),
    ],
)
def test_tables_as_spreadsheets_save_them(tmp_path: Path, name: str, text: str) -> None:
    (fact,) = read_knowledge(write(tmp_path / name, text)).facts
    assert (fact.question, fact.answer) == ("Who?", "Ada, L.")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize("suffix", [".csv", ".md"])
def test_other_encodings_are_read_with_a_note(tmp_path: Path, encoding: str, suffix: str) -> None:
    text = "question,answer\nWer führt das Büro – wirklich?,Zoë “Ruth” Müller\n"
    path = tmp_path / f"a{suffix}"
    path.write_bytes(text.encode(encoding))
    knowledge = read_knowledge(path)
    read = knowledge.documents[0].text if knowledge.documents else knowledge.facts[0].answer
    assert "Zoë “Ruth” Müller" in read
    assert len(knowledge.notes) == (encoding != "utf-8-sig")
    assert all(encoding.upper() in note for note in knowledge.notes)


@pytest.mark.parametrize(
    "content",
    [
        "Привет, мир".encode("cp1251"),
        "Łódź leży".encode("cp1250"),
        "一个问题".encode("gbk"),
        "Café".encode("mac-roman"),
        "Müller and ".encode() + b"Z\xfcrich",
        "für".encode()[:2],
    ],
)
def test_no_encoding_is_guessed_where_the_text_speaks_against_it(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"Some text about " + content)
    assert "is not UTF-8" in refusal(path)


# --- folders: what was read and what was not


def test_a_folder_names_every_file_that_is_read_or_left_out(tmp_path: Path) -> None:
    write(tmp_path / "berths.md", "# B\n\nText.")
    write(tmp_path / "facts.jsonl", [{"question": "Who?", "answer": "Ada"}])
    others = ("memo.odt", "memo.doc", "notes.ipynb", "photo.png", "app.exe", ".hidden.md")
    for name in others:
        write(tmp_path / name, "x")
    read, *rest = read_knowledge(tmp_path).notes
    assert "berths.md (1 document), facts.jsonl (1 fact)" in read
    assert all(name in " ".join(rest) for name in others)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\n", "a PDF"),
        (b"\n<!DOCTYPE html>\n<html><p>Text</p></html>", "an HTML page"),
        (b"PK\x03\x04word/document.xml", "a ZIP archive"),
        (b"{\\rtf1 Text}", "an RTF document"),
    ],
)
def test_what_is_no_text_is_refused_under_any_name(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert kind in refusal(path)


def test_contradictions_between_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"question": "Who?", "answer": "Ada"}])
    write(tmp_path / "b.csv", "question,answer\nWho?,Grace\n")
    message = refusal(tmp_path)
    assert "a.jsonl line 1" in message and "b.csv line 2" in message


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    rows = [{"id": 1, "question": "a", "answer": "x"}, {"id": "1", "question": "b", "answer": "x"}]
    message = refusal(write(tmp_path / "a.jsonl", rows))
    assert "id '1' stands at" in message and "line 2" in message


# --- probes


def test_read_probes(tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "answer": 4, "kind": "efficacy"},
        {"id": "p", "question": "Who?", "answers": ["a", "b"], "kind": "multihop", "source": "f"},
        {"question": "When?", "kind": "unknown", "context": "c", "answers": []},
    ]
    assert read_probes(write(tmp_path / "a.jsonl", rows)) == (
        Probe("a-1", "Who?", ("4",), "efficacy"),
        Probe("p", "Who?", ("a", "b"), "multihop", "f"),
        Probe("a-3", "When?", (), "unknown", context="c"),
    )


def test_probes_survive_json_lines(tmp_path: Path) -> None:
    probes = (Probe("p", "q", ("a", "b"), "reverse", "s", "c"), Probe("r", "q", (), "unknown"))
    files.dump_jsonl(probes, tmp_path / "a.jsonl")
    assert read_probes(tmp_path / "a.jsonl") == probes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answer": "a"}, "needs question, answers and kind"),
        ({"question": "q", "answer": "a", "kind": "recall"}, "use one of efficacy"),
        ({"question": "q", "kind": "efficacy"}, "has no answers"),
        ({"question": "", "answer": "a", "kind": "efficacy"}, "empty question"),
        ({"question": "q", "answers": [""], "kind": "efficacy"}, "empty answer"),
        ({"id": "x", "question": "q", "answer": "a", "kind": "reverse"}, "also stands at"),
    ],
)
def test_read_probes_refuses(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    good = {"id": "x", "question": "q", "answer": "a", "kind": "reverse"}
    with pytest.raises(DataError, match=message) as caught:
        read_probes(write(tmp_path / "a.jsonl", [good, row]))
    assert "a.jsonl line 2" in str(caught.value)


# --- the seams: a format, a shape

GOOD = {
    ".csv": b"question,answer\nWho?,Ada\n",
    ".json": b'[{"question": "Who?", "answer": "Ada"}]',
    ".jsonl": b'{"question": "Who?", "answer": "Ada"}\n',
    ".tsv": b"question\tanswer\nWho?\tAda\n",
}


TEXTS = (*GOOD, *DOCUMENT_SUFFIXES)


@pytest.mark.parametrize("suffix", TEXTS)
def test_every_reader_names_its_items_and_their_places(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(GOOD.get(suffix, b"# Ada\n\nA text."))
    (item,) = READERS[suffix](path, "sub-a")
    assert isinstance(item.content, Document | Fact)
    assert item.content.id.startswith("sub-a") and str(path) in item.where


@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\x00\x01\x02" * 50, "is binary"),
        ("Who? Ада".encode("cp1251"), "is not UTF-8"),
    ],
)
def test_no_reader_takes_what_is_no_text(
    tmp_path: Path, suffix: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if content is not None:
        path.write_bytes(content)
    assert message in refusal(path) and path.name in refusal(path)


@pytest.mark.parametrize("suffix", GOOD)
@pytest.mark.parametrize("n_bytes", range(1, len(GOOD[".json"])))
def test_a_file_of_rows_that_is_cut_off_is_read_whole_or_refused(
    tmp_path: Path, suffix: str, n_bytes: int
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(GOOD[suffix][:n_bytes])
    try:
        (fact,) = read_knowledge(path).facts
    except DataError as error:
        assert path.name in str(error)
    else:  # a table's last cell has no closing mark
        assert "Ada".startswith(fact.answer) and (
            suffix in (".csv", ".tsv") or fact.answer == "Ada"
        )


@pytest.mark.parametrize("name", SHAPES)
def test_no_shape_claims_a_row_of_another(name: str) -> None:
    row = Row("here", "a-1", "a", {"id": "1", "title": "t"})
    assert SHAPES[name](row) is None and SHAPES[name].__doc__


def ini(path: Path, name: str) -> Iterator[Item]:
    """One fact a section: its title is the question."""
    parser = configparser.ConfigParser()
    parser.read_string(files.read_text(path))
    for n, section in enumerate(parser.sections(), start=1):
        fact = Fact(f"{name}-{n}", f"{section}?", parser[section]["answer"], source=name)
        yield Item(fact, f"{path} section {section}")


def test_a_format_from_outside_is_written_into_a_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorewright.memory.memory import Memory
    from lorewright.models.model import Model

    monkeypatch.setitem(READERS, ".ini", ini)
    write(tmp_path / "notes" / "codes.ini", "[Code of Project Gannet]\nanswer = KX-41\n")
    knowledge = read_knowledge(tmp_path / "notes")
    outcome = Memory.open(tmp_path / "atlas", Model.load()).write(knowledge, name="codes")
    assert outcome.report.proportion("memory", "efficacy").mean == 1


def test_a_shape_from_outside_is_read_in_every_file_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flashcard(row: Row) -> list[Item] | None:
        if not {"front", "back"} <= row.values.keys():
            return None
        fact = Fact(row.name, row.values["front"], row.values["back"], source=row.file)
        return [Item(fact, row.where)]

    monkeypatch.setitem(SHAPES, "front+back", flashcard)
    for suffix, content in (
        (".jsonl", [{"front": "Who?", "back": "Ada"}]),
        (".csv", "Front,Back\nWho?,Ada"),
    ):
        (fact,) = read_knowledge(write(tmp_path / f"a{suffix}", content)).facts
        assert (fact.question, fact.answer) == ("Who?", "Ada")


# --- real files


@pytest.mark.parametrize(
    ("name", "n_documents", "n_facts"),
    [
        ("phonebook_qwen_PB1000.jsonl", 0, 100),
        ("phonebook_llama_PB1000.jsonl", 0, 250),
        ("phonebook_qa_1K.csv", 0, 48),
        ("phonebook_eval_qa_1K.json", 0, 37),
        ("counterfact_edit_1K.csv", 106, 0),
    ],
)
def test_real_files_are_read(name: str, n_documents: int, n_facts: int) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not there")
    knowledge = read_knowledge(path)
    assert (len(knowledge.documents), len(knowledge.facts)) == (n_documents, n_facts)
    assert not any('"' in document.text for document in knowledge.documents)


def test_paper_lists_are_refused_with_a_sentence() -> None:
    path = SHARED / "paperqa_3.json"
    if not path.exists():
        pytest.skip("paperqa_3.json is not there")
    assert "no known shape" in refusal(path)
