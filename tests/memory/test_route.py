"""Claims about routing questions to memories: which one, when none, and what lies on disk."""

from __future__ import annotations

import json
import math
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.atlases import PAGES, known, lesson_of, phones, put, texts

from lorewright.errors import ConfigError
from lorewright.files import save_json
from lorewright.knowledge.data import Example, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.memory.folder import DERIVED
from lorewright.memory.memory import Memory
from lorewright.memory.route import GATE_FILE, names_in, words
from lorewright.models.model import Model
from lorewright.routing.gate import Calibration, Gate
from lorewright.routing.index import KEYS_FILE, TERMS_FILE
from lorewright.routing.lexicon import tokens
from lorewright.training.watch import Watch

HEAD = "Could somebody remind me who the head of the Tide Office is?"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture
def memory(model: Model, tmp_path: Path) -> Memory:
    """A folder of two pages, without adapters: finding needs none."""
    memory = Memory.open(tmp_path / "atlas", model)
    for name in PAGES:
        put(memory, name, known(name), lesson_of(name))
    return memory


def steps_of(memory: Memory, question: str = HEAD) -> list[str]:
    """The steps on the way to an answer in a new process."""
    steps: list[str] = []
    Memory.of(memory.folder, memory.model).route(question, watch=Watch(steps.append))
    return steps


def gate_of(probability: float) -> Gate:
    """Every memory found holds the answer with this probability; strangers reach 0."""
    bias = math.log(probability / (1 - probability))
    zeros, ones = (0.0,) * 4, (1.0,) * 4  # score, margin, share of words and agreement
    return Gate(Calibration(("bm25",), zeros, ones, zeros, bias, 1, 1), (0.0,) * 99)


@pytest.mark.parametrize(
    "question", ["Who leads the Dredge Office?", "Who is the head of the DREDGE?"]
)
def test_an_unlikely_memory_that_does_not_name_what_the_question_names_is_left_out(
    memory: Memory, question: str
) -> None:
    router = memory.router.current()
    unlikely = replace(router, gate=gate_of(0.3))
    result = unlikely.route(question)
    assert result.hits and not result.chosen
    assert "no memory here names dredge; the nearest is" in result.why_none.lower()
    assert unlikely.route("Who leads the Tide Office?").chosen[0].memory == "harbour"
    assert replace(router, gate=gate_of(0.95)).route(question).chosen


# -- who is result --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "name"),
    [
        (HEAD, "harbour"),
        ("I am looking for the badge colour of the Tide Office.", "harbour"),
        ("How late is the Grain Mill open, what is its closing time?", "mill"),
        ("What does one pay at the Flour Shop as a fee?", "mill"),
    ],
)
def test_a_question_in_new_words_leads_to_its_memory(
    memory: Memory, question: str, name: str
) -> None:
    result = memory.route(question)
    assert [hit.memory for hit in result.chosen] == [name]
    assert result.threshold and (result.chosen[0].probability or 0) > result.threshold.value


def test_few_strangers_are_let_through(memory: Memory) -> None:
    unrelated = unrelated_questions()
    unrelated = unrelated[len(unrelated) * 3 // 4 :]  # those that the calibration does not see
    assert sum(bool(memory.route(question).chosen) for question in unrelated) <= 0.1 * len(
        unrelated
    )


def test_topics_of_the_folder_asked_of_strangers_are_not_let_through(memory: Memory) -> None:
    for question in ("What is the owner of Project Zubkel?", "Tell me the fee of the Vorn Hall."):
        result = memory.route(question)
        assert (
            not result.chosen and "no memory here is for it; the nearest is mill" in result.why_none
        )


def test_a_question_without_a_common_word_says_so(memory: Memory) -> None:
    result = memory.route("Zubkel?")
    assert not result.hits and result.why_none == "no memory here has a word of the question"


def test_a_lower_rate_of_false_activation_lets_no_more_through(memory: Memory) -> None:
    loose, strict = (memory.route(HEAD, false_activation=rate) for rate in (0.2, 0.02))
    assert loose.threshold and strict.threshold
    assert loose.threshold.value < strict.threshold.value
    assert len(loose.chosen) >= len(strict.chosen)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_a_rate_outside_the_open_interval_is_refused(memory: Memory, rate: float) -> None:
    with pytest.raises(ConfigError, match="give a share inside"):
        memory.route(HEAD, false_activation=rate)


def test_facts_without_a_document_are_found(memory: Memory) -> None:
    rows = tuple(Example(f.question, f.answer, "qa", f.id) for f in phones().facts)
    put(memory, "phones", phones(), Lesson(rows, (), "", "", ()))
    assert [hit.memory for hit in memory.route("What is Jorun Hartley's number?").chosen] == [
        "phones"
    ]


def test_where_nothing_was_asked_in_training_the_nearest_is_taken_uncalibrated(
    model: Model, tmp_path: Path
) -> None:
    memory = Memory.open(tmp_path / "atlas", model)
    put(memory, "mill", known("mill"), Lesson((Example("", PAGES["mill"][0]),), (), "", "", ()))
    result = memory.route("Who owns the Grain Mill?")
    assert [hit.memory for hit in result.chosen] == ["mill"] and result.threshold is None
    assert result.chosen[0].probability is None


def test_a_memory_without_source_and_lesson_is_found_by_no_question(memory: Memory) -> None:
    put(memory, "merged", None, None)
    assert memory.router.current().keyless == ("merged",)


def test_a_source_that_is_gone_costs_its_own_memory_only(memory: Memory) -> None:
    source = known("mill").digest()
    (memory.folder.path / "sources" / f"{source}.jsonl").unlink()
    result = memory.router.current()
    assert result.keyless == ("mill",) and "no question leads to a memory" in result.notes[0]
    assert memory.route(HEAD).chosen[0].memory == "harbour"


def test_one_adapter_under_two_names_is_found_under_the_first(memory: Memory) -> None:
    with memory.writing():
        memory.folder.change(lambda names: names.update({"zz": names["harbour"]}))
    assert memory.route(HEAD).chosen[0].memory == "harbour"


@pytest.mark.parametrize("lost", [0.5, 0.0])
def test_a_merge_measured_as_worse_gives_way_to_its_sources_while_they_are_there(
    memory: Memory, lost: float
) -> None:
    sources = dict(memory.names)
    both = Knowledge(tuple(document for name in PAGES for document in known(name).documents))
    lessons = [lesson_of(name) for name in PAGES]
    together = replace(lessons[0], examples=lessons[0].examples + lessons[1].examples)
    identity = put(memory, "a-merge", both, together)
    shares = {"paraphrase": {"n": 3, "mean": lost}, "unknown": {"n": 9, "mean": -1.0}}
    parts = [{"memory": name, "lost": shares} for name in PAGES]
    save_json({"report": {"parts": parts}}, memory.folder.state_path(identity) / "card.json")
    entry = memory.folder.entry("a-merge")
    with memory.writing():
        memory.folder.enter(
            *("a-merge", identity),
            source=entry["source"],
            run=entry["run"],
            parents=[{"name": name, "adapter": adapter} for name, adapter in sources.items()],
        )
    assert ("a-merge" in {hit.memory for hit in memory.route(HEAD).hits}) == (lost == 0)
    if lost:
        assert memory.route(HEAD).chosen[0].memory == "harbour"
        with memory.writing():
            memory.folder.change(lambda names: names.pop("harbour"))
        assert memory.route(HEAD).chosen[0].memory == "a-merge"


# -- what it is made of --------------------------------------------------------------------------


def test_probes_have_no_part_in_it(memory: Memory, model: Model, tmp_path: Path) -> None:
    other = Memory.open(tmp_path / "other", model)
    strange = Probe("x", "Zebra quagga okapi?", ("none",), "paraphrase")
    for name in PAGES:
        put(other, name, known(name), replace(lesson_of(name), probes=(strange,)))
    mine, theirs = memory.router.current(), other.router.current()
    assert {(k.text, k.kind) for k in mine.index.keys} == {
        (k.text, k.kind) for k in theirs.index.keys
    }
    held = {probe.question for name in PAGES for probe in lesson_of(name).probes}
    assert not held & {key.text for key in mine.index.keys}


def test_passages_come_nearest_first_and_no_more_than_asked_for(memory: Memory) -> None:
    about = enumerate(("roof", "cellar", "garden"), 60)
    text = "\n\n".join(f"The {word} of Fern Hall is {n * 'very '}good." for n, word in about)
    long = replace(known("mill").documents[0], id="hall", text=text)
    identity = put(memory, "hall", replace(known("mill"), documents=(long,)), None)
    first, *rest = memory.router.current().passages("How is the cellar of Fern Hall?", identity, 2)
    assert "cellar" in first and len(rest) == 1


@given(st.text())
def test_the_terms_kept_are_the_texts_own_and_never_none_of_some(text: str) -> None:
    chosen, every = words(text), tokens(text)
    assert set(chosen) <= set(every) and bool(chosen) == bool(every)


def test_names_are_what_is_written_with_capitals() -> None:
    result = list(names_in("The head of the Tide Office is Maren Oskold. It opens with a code."))
    assert {"Tide Office", "Maren Oskold"} <= set(result) and "It" not in result


# -- on disk -------------------------------------------------------------------------------------


def test_everything_derived_lies_in_one_folder_and_is_legible(memory: Memory) -> None:
    memory.route(HEAD)
    assert {p.name for p in (memory.folder.path / DERIVED).iterdir()} == {
        *(KEYS_FILE, TERMS_FILE, GATE_FILE)
    }
    assert "Tide Office" in texts(memory.folder.path / DERIVED)
    gate = json.loads((memory.folder.path / DERIVED / GATE_FILE).read_text())
    assert set(gate["memories"]) == set(memory.names.values()) and gate["calibration"]["weights"]


def test_what_is_on_disk_is_used_again(memory: Memory) -> None:
    first = memory.route(HEAD)
    assert steps_of(memory) == []
    assert Memory.of(memory.folder, memory.model).route(HEAD) == first


@pytest.mark.parametrize(
    "damage", ["gone", "keys cut", "gate cut", "keys of another", "shape", "numbers"]
)
def test_what_is_gone_or_damaged_is_made_again(memory: Memory, damage: str) -> None:
    first, place = memory.route(HEAD), memory.folder.path / DERIVED
    keys, gate = place / KEYS_FILE, place / GATE_FILE
    if damage == "gone":
        shutil.rmtree(place)
    elif damage == "keys cut":
        keys.write_text(keys.read_text()[:-40])
    elif damage == "gate cut":
        gate.write_text(gate.read_text()[:-40])
    elif damage == "shape":
        gate.write_text(json.dumps({**json.loads(gate.read_text()), "calibration": [1, {}]}))
    elif damage == "numbers":
        gate.write_text(gate.read_text().replace('"weights": [', '"weights": ["x", '))
    else:
        gate.write_text(gate.read_text().replace('"keys":', '"keyz":'))
    assert steps_of(memory) == ["indexing 2 memories", "fitting the probability"]
    assert Memory.of(memory.folder, memory.model).route(HEAD) == first


def test_a_new_memory_is_added_and_one_that_is_gone_leaves_no_word(memory: Memory) -> None:
    memory.route(HEAD)
    put(memory, "phones", phones(), None)
    assert steps_of(memory)[0] == "indexing 1 memories"
    assert "Selma Quist" in texts(memory.folder.path / DERIVED)
    with memory.writing():
        memory.folder.change(lambda names: names.pop("phones"))
    assert "phones" not in [hit.memory for hit in memory.route("Selma Quist:").hits]
    assert "Selma Quist" not in texts(memory.folder.path / DERIVED)


@pytest.mark.parametrize("lock", [True, False])
def test_what_was_forgotten_while_it_was_indexed_is_not_stored(memory: Memory, lock: bool) -> None:
    put(memory, "phones", phones(), None)

    def forget(step: str) -> None:
        if step == "fitting the probability":
            with memory.folder.writing(memory.base()):
                memory.folder.change(lambda names: names.pop("phones"))
            if lock:  # and the writer is still at it
                holder.acquire()

    holder = filelock.FileLock(memory.folder.path / ".lock")
    thread = threading.Thread(target=memory.route, args=(HEAD,), kwargs={"watch": Watch(forget)})
    thread.start()
    thread.join()
    holder.release(force=True)
    assert "Selma Quist" not in texts(memory.folder.path / DERIVED)
    assert memory.route(HEAD).chosen[0].memory == "harbour"


def test_a_renamed_memory_keeps_its_keys(memory: Memory) -> None:
    memory.route(HEAD)
    with memory.writing():
        memory.folder.change(lambda names: names.update({"port": names.pop("harbour")}))
    assert steps_of(memory) == []
    assert memory.route(HEAD).chosen[0].memory == "port"


def test_a_folder_that_takes_no_file_can_be_asked(memory: Memory) -> None:
    (memory.folder.path / DERIVED).write_text("in the way")
    assert memory.route(HEAD).chosen[0].memory == "harbour"
    assert (memory.folder.path / DERIVED).read_text() == "in the way"
