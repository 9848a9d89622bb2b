"""Claims about public sets: their published shapes are read, and anything else is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.bench import sets
from lorewright.errors import ConfigError, DataError, LorewrightError

SETS = Path(__file__).parents[1] / "fixtures" / "sets"


def rows(name: str) -> list[dict[str, Any]]:
    text = next(SETS.glob(f"{name}.json*")).read_text()
    whole = text.lstrip().startswith("[")
    return json.loads(text) if whole else [json.loads(line) for line in text.splitlines()]


def stored(folder: Path, content: object, name: str = "set.json") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


# --- the shapes


def test_edits_have_the_subject_in_their_prompts() -> None:
    first, *others = sets.edits(str(SETS / "counterfact.json"))
    assert first.prompt == "The badge colour of the Tide Office is"
    assert (first.new, first.true) == ("teal", "amber")
    assert first.paraphrases[0] == "What is the badge colour of the Tide Office?"
    assert len(first.neighbours) == 3 and len(others) == 5
    assert len(sets.edits(str(SETS / "counterfact.json"), 2)) == 2


def test_the_packaged_edits_have_every_relation_first_and_four_times() -> None:
    rewrites = [row["requested_rewrite"] for row in json.loads(sets.EDITS.read_text("utf-8"))]
    relations = [each["relation_id"] for each in rewrites]
    assert len(rewrites) == 80 and len({*relations[:20]}) == 20
    assert {*Counter(relations).values()} == {4}
    subjects = [each["subject"].casefold() for each in rewrites]
    assert len({*subjects}) == 80, "no subject is rewritten twice"


def test_packaged_edits_are_beginnings_each_once_with_two_paraphrases_and_five_neighbours() -> None:
    edits = sets.edits(sets.PACKAGED)
    assert [edit.id for edit in edits] == [str(n) for n in range(80)]
    assert {(len(e.paraphrases), len(e.neighbours)) for e in edits} == {(2, 5)}
    texts = [t for e in edits for t in (e.prompt, *e.paraphrases, *e.neighbours)]
    assert len({*texts}) == len(texts) == 640
    assert all(re.fullmatch(r"[A-Z][^{}]*[^\W\d_]", text) and "  " not in text for text in texts)
    assert not [e.prompt for e in edits if e.new == e.true]


def test_packaged_neighbours_share_the_true_object_and_are_no_subjects() -> None:
    rewrites = [row["requested_rewrite"] for row in json.loads(sets.EDITS.read_text("utf-8"))]
    subjects = {each["subject"].casefold() for each in rewrites}
    objects: dict[tuple[str, str], str] = {}
    for edit, rewrite in zip(sets.edits(sets.PACKAGED), rewrites, strict=True):
        before, after = map(re.escape, rewrite["prompt"].split("{}"))
        worded = [re.fullmatch(f"{before}(.+){after}", each) for each in edit.neighbours]
        others = [match[1].casefold() for match in worded if match]
        assert len({*others}) == 5, "worded as the statement"
        assert not {*others} & subjects
        subject = rewrite["subject"].casefold()
        assert all(subject in text.casefold() for text in edit.paraphrases)
        for name in (subject, *others):
            relation = (rewrite["relation_id"], name)
            assert objects.setdefault(relation, edit.true) == edit.true != edit.new


def test_a_set_that_is_not_packaged_needs_a_file() -> None:
    with pytest.raises(ConfigError, match="paperqa is not packaged; give --data FILE"):
        sets.texts("paperqa", sets.PACKAGED)


def test_papers_bring_their_questions_by_level() -> None:
    result = sets.texts("paperqa", str(SETS / "paperqa.json"))
    assert next(text.title for text in result) == "The tide course"
    assert [q.kind for q in result[0].questions] == ["level 1", "level 2", "level 3"]
    assert result[0].questions[0].answers == ("teal",)
    assert all(text.questions[0].answers[0] in text.text for text in result)


def test_rows_of_one_story_are_joined_and_its_part_is_chosen() -> None:
    path = str(SETS / "narrativeqa.jsonl")
    assert len(rows("narrativeqa")) == 6
    result = sets.texts("narrativeqa", path)
    assert [len(text.questions) for text in result] == [2, 2, 2]
    assert result[0].questions[0].answers == ("teal", "It is teal")
    (whole,) = sets.texts("narrativeqa", path, 1, "text")
    assert whole.text == result[0].text + " The course ends here."
    assert len(whole.questions) == 2  # the first text is read to its end


def test_both_forms_of_quality_are_the_same_texts(tmp_path: Path) -> None:
    nested = sets.texts("quality", str(SETS / "quality.jsonl"))
    assert [q.kind for q in nested[0].questions] == ["easy", "hard", "easy"]
    assert all(q.options[q.right] == q.answers[0] for text in nested for q in text.questions)
    flat = [
        {**{k: v for k, v in row.items() if k != "questions"}, **question}
        for row in rows("quality")
        for question in row["questions"]
    ]
    assert sets.texts("quality", stored(tmp_path, flat)) == nested


def test_a_list_may_stand_under_data_and_lines_under_any_name(tmp_path: Path) -> None:
    papers = sets.texts("paperqa", str(SETS / "paperqa.json"))
    assert sets.texts("paperqa", stored(tmp_path, {"data": rows("paperqa")})) == papers
    lines = "".join(json.dumps(row) + "\n" for row in rows("paperqa"))
    assert sets.texts("paperqa", stored(tmp_path, lines, "papers.dev")) == papers


# --- what is refused


def paper(**changes: Any) -> list[dict[str, Any]]:
    return [{**rows("paperqa")[0], **changes}]


def edit(**changes: Any) -> list[dict[str, Any]]:
    first = rows("counterfact")[0]
    return [{**first, "requested_rewrite": {**first["requested_rewrite"], **changes}}]


def article(**changes: Any) -> list[dict[str, Any]]:
    first = rows("quality")[0]
    return [{**first, "questions": [{**first["questions"][0], **changes}]}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("paperqa", "", "is empty"),
        ("paperqa", "[]", "holds no rows"),
        ("paperqa", '{"data": 3}', "holds a int; give a list of rows"),
        ("paperqa", "[3]", "item 1 is a int"),
        ("paperqa", '[{"title": "x"', "line 1 is not valid JSON"),
        ("paperqa", [{"text": "x"}], "has the keys text; PaperQA needs 'title'"),
        ("paperqa", paper(introduction="  "), "needs 'introduction', a text that is not empty"),
        ("paperqa", paper(QA=[]), "needs 'QA', a list of objects that is not empty"),
        ("paperqa", paper(QA=[{"question": "Who?"}]), "item 1, QA 1 has the keys question;"),
        ("counterfact", edit(prompt="It is"), "needs one {} in 'prompt'"),
        ("counterfact", edit(target_new="teal"), "needs 'target_new', an object"),
        ("counterfact", edit(target_new={"str": "amber"}), "two targets that differ"),
        ("counterfact", [{"text": "Lenta.ru is Italian"}], "CounterFact needs 'requested_rewrite'"),
        ("counterfact", edit() + edit(), "holds 0 twice"),
        ("quality", article(gold_label=5), "needs a 'gold_label' from 1 to 4"),
        ("quality", article(options="teal"), "needs 'options', a list of texts"),
        ("quality", article(gold_label=True), "needs 'gold_label', a whole number"),
        ("narrativeqa", paper(), "NarrativeQA needs 'document', an object"),
    ],
)
def test_other_shapes_are_refused_by_what_they_lack(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    data = stored(tmp_path, content)
    with pytest.raises(DataError) as caught:
        sets.edits(data) if name == "counterfact" else sets.texts(name, data)
    assert message in str(caught.value)


def test_a_key_that_is_missing_or_misspelt_is_named_with_those_found(tmp_path: Path) -> None:
    first = {**rows("counterfact")[0]}
    first["paraphrase_prompt"] = first.pop("paraphrase_prompts")
    with pytest.raises(DataError, match=r"paraphrase_prompt; CounterFact needs 'paraphrase_prom"):
        sets.edits(stored(tmp_path, [first]))
    held = [{k: v for k, v in article()[0]["questions"][0].items() if k != "gold_label"}]
    with pytest.raises(DataError, match="the test split has none"):
        sets.texts("quality", stored(tmp_path, [{**article()[0], "questions": held}], "b.json"))


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="binary"):
        sets.texts("paperqa", str(tmp_path / "b.json"))
    with pytest.raises(DataError, match="no such file"):
        sets.texts("paperqa", str(tmp_path / "missing.json"))
    page = [{**rows("quality")[0], "article": "<p>Once</p><p>upon</p>"}]
    with pytest.raises(DataError, match="htmlstripped"):
        sets.texts("quality", stored(tmp_path, page))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["title", "QA", "article", "questions", "document", "data", "x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["paperqa", "narrativeqa", "quality"]),
)
def test_any_json_is_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: object, name: str
) -> None:
    data = stored(tmp_path_factory.mktemp("any"), content)
    try:
        assert sets.texts(name, data)
    except LorewrightError as error:
        assert str(error).endswith(".")


# --- the hub


def test_without_a_network_the_hub_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"the hub gave no 'tasksource/QuALITY'.*--data FILE"):
        sets.texts("quality", "hub")
    with pytest.raises(ConfigError, match="paperqa is not on the hub"):
        sets.texts("paperqa", "hub")


def test_the_datasets_library_brings_the_same_texts(tmp_path: Path) -> None:
    for row in rows("quality"):
        with (tmp_path / "validation.jsonl").open("a") as lines:
            lines.write(json.dumps(row) + "\n")
    result = sets.texts("quality", f"hub:{tmp_path}@validation", 2)
    assert result == sets.texts("quality", str(SETS / "quality.jsonl"))[:2]
    with pytest.raises(ConfigError, match="split 'dev'"):
        sets.texts("quality", f"hub:{tmp_path}@dev")


# --- jobs


@given(st.integers(1, 40), st.integers(2, 9))
def test_groups_hold_everything_once_and_nobody_alone(n: int, size: int) -> None:
    result = sets.groups(n, size)
    assert [i for group in result for i in group] == list(range(n))
    assert n == 1 or all(2 <= len(group) <= size + 1 for group in result)
