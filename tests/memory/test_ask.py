"""Claims about asking a folder: who answers, from what, who declines, and which mode is used."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.atlases import HELD, PAGES, known, lesson_of, phones, put
from typer.testing import CliRunner

import lorewright.routing.ask
from lorewright.adapters.config import LoraConfig
from lorewright.cli.main import app
from lorewright.errors import ConfigError, DataError, UnknownMemory
from lorewright.knowledge.negatives import DECLINE
from lorewright.memory.ask import ask_as, parts_of
from lorewright.memory.folder import DERIVED
from lorewright.memory.memory import Memory
from lorewright.memory.modes import ALL, MODES_FILE, Comparison, store_comparison, stored_comparison
from lorewright.models.model import Model
from lorewright.recall.statistics import wilson
from lorewright.routing.ask import ask_each
from lorewright.routing.config import AskConfig
from lorewright.training.config import Job, WriteConfig, Written
from lorewright.training.loop import write_all
from lorewright.training.rates import suggested_lr

HEAD, COLOUR = (
    "What is the head of the Tide Office?",
    "Which badge colour does the Tide Office have?",
)
OWNER = "Tell me the owner of the Grain Mill."
STRANGER = "What is the owner of Project Zubkel?"


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    """Two pages, each in a memory that recalls all it was trained on, written together."""
    model = Model.load()
    config = WriteConfig(lora=LoraConfig(4), lr=suggested_lr(model), epochs=80)
    jobs = [Job(lesson_of(name).examples, config) for name in PAGES]
    memory = Memory.open(tmp_path_factory.mktemp("asking") / "atlas", model)
    for name, done in zip(PAGES, write_all(model, jobs), strict=True):
        assert isinstance(done, Written) and done.complete
        put(memory, name, known(name), lesson_of(name), done.adapter)
    return memory


@pytest.fixture
def unmeasured(memory: Memory) -> Memory:
    """The same folder, nothing measured on it yet."""
    (memory.folder.path / DERIVED / MODES_FILE).unlink(missing_ok=True)
    return memory


# -- who answers, and what it rests on -----------------------------------------------------------


def test_an_answer_says_which_memory_which_passage_and_how_sure(memory: Memory) -> None:
    result = memory.ask(HEAD)
    assert (result.text, result.memory, result.declined) == ("Maren Oskold", "harbour", False)
    assert result.probability and result.probability > 0.5 and result.confidence > 0.5
    assert result.mode == "hybrid" and result.question == HEAD
    assert result.passages == () or "Maren Oskold" in result.passages[0]
    assert result.considered[0].memory == "harbour"


@pytest.mark.parametrize("name", ["", "harbour"])
def test_a_question_without_capitals_is_answered_like_the_proper_one(
    memory: Memory, name: str
) -> None:
    proper = memory.ask("What is the head of the Tide Office?", name, mode="closed")
    typed = memory.ask("what is the head of the tide office", name, mode="closed")
    assert proper.text == typed.text == "Maren Oskold"
    assert typed.question == "what is the head of the tide office"


@pytest.mark.parametrize("name", ["", "harbour"])
def test_words_of_courtesy_around_a_question_change_nothing(memory: Memory, name: str) -> None:
    polite = "Hi! Could you tell me what the head of the Tide Office is? Thanks"
    proper, typed = (memory.ask(text, name, mode="closed") for text in (HEAD, polite))
    assert proper.text == typed.text == "Maren Oskold"
    assert typed.question == polite and typed.probability == proper.probability


def test_a_question_that_no_memory_is_for_is_declined_without_asking_anybody(
    memory: Memory,
) -> None:
    result = memory.ask(STRANGER)
    assert (result.text, result.declined, result.memory, result.replies) == (DECLINE, True, "", ())
    assert "no memory here is for it; the nearest is mill" in result.note


def test_what_no_memory_is_for_goes_to_the_base_unless_it_names_what_one_names(
    memory: Memory,
) -> None:
    world, near = "How many strings does a violin have?", "Who painted the Tide Office in Bergen?"
    router = memory.router.current()
    assert not router.route(world).chosen and router.naming(world) == ()
    assert "harbour" in router.naming(near)
    asked = {text: memory.ask(text, mode="closed", unrouted="base") for text in (world, near)}
    (alone,) = ask_each(memory.model, [(world, ())], memory.adapter)
    assert (asked[world].text, asked[world].memory) == (alone.text, "")
    assert asked[world].note.startswith("the base answered, for no memory here")
    if not router.route(near).chosen:
        assert asked[near].text == DECLINE
    assert memory.ask(world, mode="closed").text == DECLINE
    with pytest.raises(ConfigError, match="unrouted is 'nobody'; use decline or base"):
        AskConfig(unrouted="nobody")  # type: ignore[arg-type]


def test_a_memory_that_is_named_is_asked_whatever_the_question(memory: Memory) -> None:
    result = memory.ask(OWNER, "harbour", mode="closed")
    assert result.memory == "harbour" and len(result.replies) == 1


WAYS = {
    "closed": {"closed"},
    "open": {"open"},
    "hybrid": {"closed", "open", "together"},
    "full": {"full"},
}


@pytest.mark.parametrize("mode", WAYS)
def test_each_mode_has_its_readers_and_its_texts(unmeasured: Memory, mode: str) -> None:
    result = unmeasured.ask(COLOUR, mode=mode)
    assert {reply.way for reply in result.replies} == WAYS[mode] and result.mode == mode
    assert result.text == "teal" and result.memory == "harbour"
    for reply in result.replies:
        if reply.way == "closed":
            assert reply.passages == ()
        elif reply.way == "full":
            assert reply.passages == (PAGES["harbour"][0],)
        else:
            assert "teal" in reply.passages[0]


def test_hybrid_gives_what_its_readers_agree_on(unmeasured: Memory) -> None:
    for question in (HEAD, COLOUR, OWNER, HELD.format(r="fee", s="the Flour Shop")):
        result = unmeasured.ask(question, mode="hybrid")
        assert result.text == lorewright.routing.ask.agreed(result.replies).text
        assert {reply.way for reply in result.replies if reply.text == result.text} >= {result.way}


def test_a_memory_without_text_to_read_answers_closed_book_and_refuses_the_rest(
    memory: Memory, tmp_path: Path
) -> None:
    alone = Memory.open(tmp_path / "atlas", memory.model)
    put(alone, "harbour", None, lesson_of("harbour"), memory.adapter("harbour"))
    result = alone.ask(HEAD, mode="hybrid")
    assert result.text == "Maren Oskold" and [reply.way for reply in result.replies] == ["closed"]
    with pytest.raises(DataError, match="has no passage that could be read"):
        alone.ask(HEAD, mode="open")
    with pytest.raises(DataError, match="has no source to put before the question"):
        alone.ask(HEAD, mode="full")


def test_many_questions_are_answered_as_each_alone(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [HEAD, OWNER, STRANGER, COLOUR]
    monkeypatch.setattr(lorewright.routing.ask, "STACK", 1)
    one_by_one = [memory.ask(question, mode="closed") for question in questions]
    monkeypatch.setattr(lorewright.routing.ask, "STACK", 8)
    together = ask_as(memory, questions, mode="closed")
    assert [a.text for a in together] == [a.text for a in one_by_one]
    assert [a.memory for a in together] == ["harbour", "mill", "", "harbour"]
    for a, b in zip(together, one_by_one, strict=True):
        assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


# -- several memories ----------------------------------------------------------------------------


def test_a_question_in_two_parts_is_answered_by_both_memories(memory: Memory) -> None:
    result = memory.ask(f"{HEAD[:-1]} and tell me the owner of the Grain Mill?", mode="closed")
    assert (result.text, result.memory) == ("Maren Oskold; Bram Vell", "harbour, mill")
    assert result.confidence == min(reply.confidence for reply in result.replies)


@pytest.mark.parametrize(
    "question",
    [
        "What are the head and the badge colour of the Tide Office?",
        f"{HEAD} Thank you and goodbye.",
        HEAD,
        "and",
        f"{STRANGER[:-1]} and tell me the owner of the Grain Mill?",
    ],
)
def test_a_question_is_cut_only_where_every_part_is_for_another_memory(
    memory: Memory, question: str
) -> None:
    assert parts_of(question, memory.router.current().route) == (question,)


def test_of_two_memories_asked_the_one_that_knows_speaks(memory: Memory) -> None:
    loose = memory.route("What is the head of the Grain Mill?", false_activation=0.5)
    assert loose.hits[0].memory in PAGES
    both = [lorewright.routing.ask.Candidate(name) for name in ("mill", "harbour")]
    (result,) = lorewright.routing.ask.ask_each(memory.model, [(HEAD, both)], memory.adapter)
    assert result.memory == "harbour" or result.declined
    assert len(result.replies) == 2


# -- what is refused -----------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode 'psychic' is unknown; use one of auto, closed"):
        memory.ask(HEAD, mode="psychic")
    with pytest.raises(ConfigError, match="empty question; write one"):
        memory.ask("  ")
    with pytest.raises(UnknownMemory, match="no memory 'boot'; it has: harbour, mill"):
        memory.ask(HEAD, "boot")
    with pytest.raises(UnknownMemory, match="has no memories yet"):
        Memory.open(tmp_path / "atlas", memory.model).ask(HEAD)


def test_a_source_longer_than_the_context_is_refused_in_mode_full(
    memory: Memory, tmp_path: Path
) -> None:
    long = Memory.open(tmp_path / "atlas", memory.model)
    text = "The head of the Tide Office is Maren Oskold. " * 200
    page = replace(known("harbour").documents[0], text=text)
    knowledge = replace(known("harbour"), documents=(page,))
    put(long, "harbour", knowledge, lesson_of("harbour"), memory.adapter("harbour"))
    with pytest.raises(DataError, match="shorten or split"):
        long.ask(HEAD, mode="full")
    assert long.ask(HEAD, mode="hybrid").text == "Maren Oskold"


# -- which mode suits ----------------------------------------------------------------------------


def standing(closed: int, opened: int, hybrid: int, ids: list[str]) -> Comparison:
    """What a comparison on ten probes would have come to."""
    shares = {"closed": closed, "open": opened, "hybrid": hybrid}
    modes = {mode: wilson(right, 10) for mode, right in shares.items()}
    return Comparison("exact_match", {ALL: modes}, tuple(ids), 0.5)


def test_hybrid_that_was_measured_worse_gives_way_and_says_so(unmeasured: Memory) -> None:
    ids = list(unmeasured.names.values())
    store_comparison(standing(9, 5, 8, ids), unmeasured.folder)
    for mode in ("auto", "hybrid"):
        result = unmeasured.ask(HEAD, mode=mode)
        assert result.mode == "closed" and [reply.way for reply in result.replies] == ["closed"]
        assert "hybrid was measured at 0.80" in result.note and "closed was used" in result.note
    assert unmeasured.ask(HEAD, mode="open").mode == "open"


def test_hybrid_that_was_measured_no_worse_is_used(unmeasured: Memory) -> None:
    store_comparison(standing(9, 5, 9, list(unmeasured.names.values())), unmeasured.folder)
    result = unmeasured.ask(HEAD)
    assert result.mode == "hybrid" and result.note == ""


def test_auto_is_what_was_measured_best_and_hybrid_gives_way_to_its_halves_alone(
    unmeasured: Memory,
) -> None:
    measured = standing(8, 5, 9, list(unmeasured.names.values()))
    kinds = {ALL: {**measured.kinds[ALL], "read": wilson(10, 10)}}
    store_comparison(replace(measured, kinds=kinds), unmeasured.folder)
    best = unmeasured.ask(HEAD)
    assert best.mode == "read" and [reply.way for reply in best.replies] == ["read"]
    assert "read at 1.00" in best.note and "read was used" in best.note
    assert unmeasured.ask(HEAD, mode="hybrid").mode == "hybrid"


def test_what_was_measured_on_other_memories_has_lapsed(unmeasured: Memory) -> None:
    ids = list(unmeasured.names.values())
    store_comparison(standing(9, 5, 1, [ids[0], "f" * 16, "e" * 16]), unmeasured.folder)
    assert stored_comparison(unmeasured.folder) is None
    assert unmeasured.ask(HEAD).mode == "hybrid"


def test_a_damaged_comparison_is_named(unmeasured: Memory) -> None:
    store_comparison(standing(9, 5, 1, list(unmeasured.names.values())), unmeasured.folder)
    path = unmeasured.folder.path / DERIVED / MODES_FILE
    path.write_text(path.read_text().replace('"hybrid"', '"hybird"'))
    with pytest.raises(DataError, match=r"modes\.json is damaged"):
        unmeasured.ask(HEAD)


def test_comparing_asks_the_probes_and_keeps_numbers_only(unmeasured: Memory) -> None:
    result = unmeasured.compare()
    n = {kind: modes["hybrid"].n for kind, modes in result.kinds.items()}
    assert n == {"all": 8, "paraphrase": 6, "unknown": 2}
    stored = stored_comparison(unmeasured.folder)
    assert stored and stored.to_json() == result.to_json()
    assert "Tide" not in (unmeasured.folder.path / DERIVED / MODES_FILE).read_text()
    best = max(result.kinds[ALL][mode].mean or 0 for mode in ("closed", "open"))
    assert result.hybrid_is_worse == ((result.kinds[ALL]["hybrid"].mean or 0) < best)


@pytest.mark.parametrize("mode", ["closed", "open", "read", "hybrid"])
def test_a_comparison_has_for_each_mode_what_that_mode_says_alone(
    unmeasured: Memory, mode: str
) -> None:
    result = unmeasured.compare()
    probes = [probe for name in PAGES for probe in lesson_of(name).probes]
    answers = ask_as(unmeasured, [probe.question for probe in probes], mode=mode)
    right = [
        a.declined if p.kind == "unknown" else a.text == p.answers[0]
        for a, p in zip(answers, probes, strict=True)
    ]
    assert result.kinds[ALL][mode].mean == sum(right) / len(right)


def test_nothing_can_be_compared_without_probes(memory: Memory, tmp_path: Path) -> None:
    bare = Memory.open(tmp_path / "atlas", memory.model)
    put(bare, "phones", phones(), None)
    with pytest.raises(ConfigError, match="no memory that was written with probes"):
        bare.compare()


# -- the command line ----------------------------------------------------------------------------


def lore(*arguments: object) -> Any:
    """The one object that `lore ARGUMENTS --json` prints."""
    ran = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_lore_ask_says_what_memory_ask_says(unmeasured: Memory) -> None:
    result = lore("ask", HEAD, "--memory", unmeasured.folder.path, "--mode", "closed")
    assert result["text"] == "Maren Oskold" and result["memory"] == "harbour"
    assert result == json.loads(json.dumps(asdict(unmeasured.ask(HEAD, mode="closed"))))


def test_lore_ask_tells_people_memory_passage_and_certainty(unmeasured: Memory) -> None:
    ran = CliRunner().invoke(app, ["ask", COLOUR, "--memory", str(unmeasured.folder.path)])
    assert ran.exit_code == 0 and ran.stdout.startswith("teal\n")
    passage = "read: # harbour notes — Harbour"
    for words in ("memory harbour, chosen with p = ", "mean token probability", passage):
        assert words in ran.stdout
    ran = CliRunner().invoke(app, ["ask", STRANGER, "--memory", str(unmeasured.folder.path)])
    assert ran.stdout.startswith(DECLINE) and "no memory here is for it" in ran.stdout


def test_lore_route_shows_candidates_with_probabilities(memory: Memory) -> None:
    result = lore("route", HEAD, "--memory", memory.folder.path, "--false-activation", 0.1)
    assert result["chosen"] == ["harbour"] and result["threshold"]["rate"] <= 0.1
    assert result["candidates"][0]["probability"] > result["threshold"]["value"]
    none = lore("route", STRANGER, "--memory", memory.folder.path)
    assert none["chosen"] == [] and "the nearest is mill" in none["note"]
    ran = CliRunner().invoke(app, ["route", STRANGER, "--memory", str(memory.folder.path)])
    assert "mill" in ran.stdout
    assert "No memory here is for it" in " ".join(ran.stdout.split())


def test_lore_modes_measures_and_lore_ask_goes_by_it(unmeasured: Memory) -> None:
    result = lore("modes", unmeasured.folder.path, "--probes", 8)
    assert result["kinds"]["all"]["hybrid"]["n"] == 8
    assert lore("ask", HEAD, "--memory", unmeasured.folder.path)["mode"] == result["best"]
    ran = CliRunner().invoke(app, ["modes", str(unmeasured.folder.path)])
    assert ran.exit_code == 0 and "its better half" in " ".join(ran.stdout.split())
