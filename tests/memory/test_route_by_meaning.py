"""Claims about routing with an encoder: what it is fitted on, what the folder remembers of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.atlases import PAGES, known, lesson_of, put
from support.encoders import HASHING, tiny_encoder
from support.real import link_models, needs

from lorewright.errors import ModelError
from lorewright.knowledge.data import Document, Knowledge
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.memory.folder import DERIVED
from lorewright.memory.memory import Memory
from lorewright.memory.route import GATE_FILE
from lorewright.models.encoders import Encoder
from lorewright.models.model import Model
from lorewright.routing.index import BY_MEANING
from lorewright.training.watch import Watch

HEAD = "Could somebody remind me who the head of the Tide Office is?"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


def opened(folder: Path, model: Model, encoder: str | Encoder = HASHING) -> Memory:
    return Memory.open(folder, model, encoder=encoder)


@pytest.fixture
def memory(model: Model, tmp_path: Path) -> Memory:
    """A folder of two pages, without adapters: finding needs none."""
    memory = opened(tmp_path / "atlas", model)
    for name in PAGES:
        put(memory, name, known(name), lesson_of(name))
    return memory


def steps_of(memory: Memory, encoder: str | Encoder) -> list[str]:
    """The steps on the way to an answer in a new process."""
    steps: list[str] = []
    again = opened(memory.folder.path, memory.model, encoder)
    again.route(HEAD, watch=Watch(steps.append))
    return steps


def gate_of(memory: Memory) -> dict[str, object]:
    content = (memory.folder.path / DERIVED / GATE_FILE).read_text(encoding="utf-8")
    return dict(json.loads(content))


MADE = ["indexing 2 memories", "fitting the probability"]


@pytest.mark.parametrize(
    ("question", "name"),
    [
        (HEAD, "harbour"),
        ("I am looking for the badge colour of the Tide Office.", "harbour"),
        ("How late is the Grain Mill open, what is its closing time?", "mill"),
    ],
)
def test_a_question_in_new_words_leads_to_its_memory(
    memory: Memory, question: str, name: str
) -> None:
    result = memory.route(question)
    assert [hit.memory for hit in result.chosen] == [name]
    assert set(result.hits[0].parts) == {"bm25", "dense", "passages"}


def test_few_strangers_are_let_through(memory: Memory) -> None:
    unrelated = unrelated_questions()
    unrelated = unrelated[len(unrelated) * 3 // 4 :]  # those that the calibration does not see
    passed = sum(bool(memory.route(question).chosen) for question in unrelated)
    assert passed <= 0.1 * len(unrelated)


def test_documents_that_were_never_asked_anything_have_a_probability_all_the_same(
    model: Model, tmp_path: Path
) -> None:
    memory = opened(tmp_path / "atlas", model)
    for name in PAGES:
        put(memory, name, known(name), None)
    result = memory.route("Who is the owner of the Grain Mill?")
    assert result.hits[0].memory == "mill" and result.hits[0].probability is not None
    assert result.threshold is not None


def test_an_index_is_made_anew_for_another_encoder_and_read_again_for_the_same(
    memory: Memory,
) -> None:
    first = memory.route(HEAD)
    assert steps_of(memory, HASHING) == []
    assert opened(memory.folder.path, memory.model).route(HEAD) == first
    other = replace(HASHING, id="hashing@2")
    assert steps_of(memory, other) == MADE and steps_of(memory, other) == []
    assert gate_of(memory)["encoder"] == "hashing@2"
    assert steps_of(memory, "none") == MADE and gate_of(memory)["encoder"] == ""
    assert not list((memory.folder.path / DERIVED).glob("vectors-*"))


def test_a_folder_goes_on_with_the_encoder_that_was_requested(
    memory: Memory, tmp_path: Path
) -> None:
    place = tiny_encoder(tmp_path / "encoder")
    assert steps_of(memory, str(place)) == MADE
    assert steps_of(memory, "auto") == []
    assert gate_of(memory)["requested"] == str(place.resolve())
    with pytest.raises(ModelError, match="no folder"):
        steps_of(memory, "no-such-encoder")
    assert steps_of(memory, "none") == MADE and steps_of(memory, "auto") == []


def test_names_alone_have_no_vector(memory: Memory) -> None:
    index = memory.router.current().index
    assert index.vectors_ND is not None
    for key, vector_D in zip(index.keys, index.vectors_ND, strict=True):
        assert bool(vector_D.any()) == (key.kind in BY_MEANING)


def test_a_memory_that_is_gone_leaves_no_vector(memory: Memory) -> None:
    memory.route(HEAD)
    with memory.writing():
        memory.folder.change(lambda names: names.pop("mill"))
    index = opened(memory.folder.path, memory.model).router.current().index
    assert index.memories == (memory.names["harbour"],)
    assert index.vectors_ND is not None and len(index.vectors_ND) == len(index.keys)
    assert len(list((memory.folder.path / DERIVED).glob("vectors-*.npy"))) == 1


@needs("minilm")
def test_minilm_leads_from_words_that_no_text_has(
    model: Model, tmp_path: Path, own_cache: Path
) -> None:
    link_models(own_cache)
    memory = opened(tmp_path / "atlas", model, "auto")
    text = "The Kestrel cluster is administered by Ines Varga. It has forty nodes in Tromsø."
    page = Knowledge((Document("cluster", text, "Computing at the institute"),))
    put(memory, "cluster", page, None)
    put(memory, "mill", known("mill"), lesson_of("mill"))
    result = memory.route("Who looks after the Kestrel cluster?")
    assert [hit.memory for hit in result.chosen] == ["cluster"]
    assert not memory.route("What is the capital of France?").chosen
