"""Claims about what answers inside the server: the bank, the rows, the engine, the text.

The embedded base with adapters that were never trained: what they say makes no sense, but each says
something else, so an answer from the wrong one cannot go unnoticed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support import families
from support.engines import untrained
from support.models import letters

import lorewright.serve.batch
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.errors import AdapterError, ConfigError, ModelError, NoEffect, WrongBase
from lorewright.models.model import Model, Rendered
from lorewright.recall.traces import trace
from lorewright.serve.adapter_cache import NO_SLOT, AdapterCache, check
from lorewright.serve.batch import PaddedBatch, SequentialBatch, batch_for
from lorewright.serve.scheduler import Job, Output, Scheduler, draw
from lorewright.serve.text import Detokenizer


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


CONFIGS = (
    LoraConfig(4, seed=1),
    LoraConfig(2, 8, ("attention",), seed=2),
    LoraConfig(8, targets=("mlp",), layers=(1, 3), seed=3),
    LoraConfig(3, rslora=True, seed=4),
)


@pytest.fixture(scope="module")
def adapters(model: Model) -> list[Adapter | None]:
    """Several adapters of unlike shapes, and the base alone."""
    return [None, *(untrained(model, config) for config in CONFIGS)]


@pytest.fixture(scope="module")
def prompts(model: Model) -> list[tuple[int, ...]]:
    """Plain text: to questions about what it does not know, the base has one answer only."""
    texts = ["The code", "Project Gannet has its room in", "The team of Project Heron " * 5]
    return [plain(model, text) for text in texts]


@pytest.fixture(scope="module")
def alone(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> dict[tuple[int, int], list[int]]:
    """What each adapter says to each prompt, by the library's own generation, one at a time."""
    found = {}
    for a, adapter in enumerate(adapters):
        with model.using(*([adapter] if adapter else [])):
            for p, prompt in enumerate(prompts):
                (found[a, p],) = model.generate_ids([prompt], max_new_tokens=12)
    assert len({tuple(said) for said in found.values()}) > len(adapters), "they must differ"
    return found


@pytest.fixture
def engine(model: Model) -> Iterator[Scheduler]:
    made = Scheduler(model, max_rows=5)
    made.start()
    yield made
    made.stop()


class Ear:
    """Gathers what a job is told; `wait` returns it."""

    def __init__(self) -> None:
        self.pieces: list[Output] = []
        self.ended = threading.Event()

    def __call__(self, piece: Output) -> None:
        self.pieces.append(piece)
        if piece.finish:
            self.ended.set()

    def wait(self) -> tuple[list[int], str]:
        """Token ids and the finish, once there is one."""
        assert self.ended.wait(30)
        ids = [token.id for piece in self.pieces for token in piece.tokens]
        return ids, self.pieces[-1].finish


def plain(model: Model, text: str) -> tuple[int, ...]:
    """Ids of plain text after the start token."""
    return (
        *model.render("").prompt_ids,
        *model.tokenizer(text, add_special_tokens=False)["input_ids"],
    )


def job(prompt: Sequence[int], ear: Ear, adapter: Adapter | None = None, n: int = 12) -> Job:
    """A greedy job; the adapter's configuration stands for its content."""
    identity = str(adapter.config) if adapter else ""
    return Job(prompt, n, ear, adapter=adapter, adapter_id=identity)


# --- the engine --------------------------------------------------------------------------------


def test_a_batch_of_different_memories_says_what_each_says_alone(
    engine: Scheduler,
    adapters: list[Adapter | None],
    prompts: list[tuple[int, ...]],
    alone: dict[tuple[int, int], list[int]],
) -> None:
    ears = {key: Ear() for key in alone}
    for (a, p), ear in ears.items():  # 15 jobs, 5 rows: they join as others leave
        assert engine.submit([job(prompts[p], ear, adapters[a])])
    for key, ear in ears.items():
        ids, finish = ear.wait()
        assert ids == alone[key], key
        assert finish == ("length" if len(ids) == 12 else "stop")


def test_a_job_that_joins_late_changes_nothing_for_those_that_run(
    engine: Scheduler,
    adapters: list[Adapter | None],
    prompts: list[tuple[int, ...]],
    alone: dict[tuple[int, int], list[int]],
) -> None:
    first, second = Ear(), Ear()
    started = threading.Event()
    running = job(prompts[1], first, adapters[1])
    running.deliver = lambda piece: (first(piece), started.set())[0]  # type: ignore[func-returns-value]
    engine.submit([running])
    assert started.wait(30)
    engine.submit([job(prompts[2], second, adapters[3])])
    assert first.wait()[0] == alone[1, 1]
    assert second.wait()[0] == alone[3, 2]


def test_only_the_whole_reply_is_delivered_when_that_is_asked_for(
    engine: Scheduler, prompts: list[tuple[int, ...]], alone: dict[tuple[int, int], list[int]]
) -> None:
    ear = Ear()
    asked = job(prompts[1], ear)
    asked.stream = False
    engine.submit([asked])
    assert ear.wait()[0] == alone[0, 1]
    assert len(ear.pieces) == 1


def test_logprobs_are_those_of_teacher_forcing(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    adapter = adapters[1]
    assert adapter
    engine = Scheduler(model, max_rows=2)
    engine.start()
    ear = Ear()
    asked = replace(job(prompts[1], ear, adapter), n_top=3, ignore_stop=True)
    engine.submit([asked])
    ids, _ = ear.wait()
    engine.stop()
    with model.using(adapter):
        (expected,) = trace(model, [Rendered(prompts[1], tuple(ids))])
    tokens = [token for piece in ear.pieces for token in piece.tokens]
    found = [2.718281828459045 ** (token.logprob or 0) for token in tokens]
    assert found == pytest.approx(expected.p, abs=1e-4)
    assert all(token.top[0][0] == token.id and len(token.top) == 3 for token in tokens)


def test_a_seed_repeats_a_drawn_reply_in_any_company(
    engine: Scheduler, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    def drawn(seed: int, company: int) -> list[int]:
        ear = Ear()
        asked = replace(job(prompts[1], ear), temperature=1.5, seed=seed, ignore_stop=True)
        others = [job(prompts[2], Ear(), adapters[i + 1]) for i in range(company)]
        engine.submit([*others, asked])
        return ear.wait()[0]

    assert drawn(7, 0) == drawn(7, 3)
    assert drawn(7, 0) != drawn(8, 0)


def test_a_cancelled_job_makes_room_and_is_told_nothing_more(
    model: Model, prompts: list[tuple[int, ...]]
) -> None:
    engine = Scheduler(model, max_rows=1)
    engine.start()
    endless, started, next_one = Ear(), threading.Event(), Ear()

    def hear(piece: Output) -> None:
        endless(piece)
        started.set()

    long = replace(job(prompts[0], endless, n=500), deliver=hear, ignore_stop=True)
    engine.submit([long])
    assert started.wait(30)
    engine.cancel(long)
    engine.submit([job(prompts[1], next_one)])
    next_one.wait()
    engine.stop()
    assert not endless.ended.is_set()
    assert sum(len(piece.tokens) for piece in endless.pieces) < 500


def test_stopping_finishes_what_was_taken_and_gives_the_base_back(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    ids = torch.tensor([prompts[1]])
    with torch.no_grad():
        before = model.network(ids).logits
    engine = Scheduler(model, max_rows=2)
    engine.start()
    ears = [Ear() for _ in range(6)]
    for i, ear in enumerate(ears):
        engine.submit([job(prompts[i % 3], ear, adapters[i % 5])])
    engine.stop()
    assert all(ear.ended.is_set() for ear in ears)
    with torch.no_grad():
        assert torch.equal(model.network(ids).logits, before)
    with pytest.raises(ModelError, match="has ended"):
        engine.submit([job(prompts[0], Ear())])


def test_a_full_queue_takes_none_of_several_jobs(
    model: Model, prompts: list[tuple[int, ...]]
) -> None:
    engine = Scheduler(model, max_rows=1, max_waiting=3)  # not started: everything waits
    try:
        assert engine.submit([job(prompts[0], Ear())] * 2)
        assert not engine.submit([job(prompts[0], Ear())] * 2)
        assert engine.n_waiting == 2
    finally:
        engine.stop()


def test_jobs_that_cannot_fit_are_refused_before_they_wait(engine: Scheduler, model: Model) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        engine.submit([job([1] * model.context, Ear())])
    with pytest.raises(ConfigError, match="do not fit"):
        engine.submit([job([], Ear())])


def test_a_step_that_fails_ends_its_jobs_and_no_others(
    engine: Scheduler,
    prompts: list[tuple[int, ...]],
    alone: dict[tuple[int, int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(ids: Sequence[int]) -> torch.Tensor:
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.batch, "step", broken)
    unlucky, lucky = Ear(), Ear()
    engine.submit([job(prompts[0], unlucky)])
    assert unlucky.wait()[1] == "failed"
    assert "out of memory" in str(unlucky.pieces[-1].error)
    engine.submit([job(prompts[1], lucky)])
    assert lucky.wait()[0] == alone[0, 1]


# --- the bank ----------------------------------------------------------------------------------


def test_slots_are_reused_least_recent_first_and_never_while_held(
    model: Model, adapters: list[Adapter | None]
) -> None:
    _, a, b, c, d = adapters
    assert a and b and c and d
    bank = AdapterCache(model, 2)
    try:
        slot = bank.acquire("a", a)
        assert bank.acquire("b", b) != slot
        with pytest.raises(AdapterError, match="all 2 slots are in use"):
            bank.acquire("c", c)
        bank.release("a")
        assert bank.acquire("c", c) == slot
        assert set(bank.slots) == {"b", "c"}
        assert bank.acquire("b", b) != slot
        bank.release("b")
        with pytest.raises(AdapterError, match="in use"):
            bank.acquire("d", d)  # b is held once more
    finally:
        bank.close()


def test_a_slot_that_is_filled_anew_keeps_nothing_of_what_it_held(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    wide, narrow = adapters[1], adapters[2]  # all layers at rank 4; attention only at rank 2
    assert wide and narrow
    ids = torch.tensor([prompts[1]])
    found = []
    for order in ([narrow], [wide, narrow]):
        bank = AdapterCache(model, 1)
        for adapter in order:
            bank.binding.bind([bank.acquire(str(adapter.config), adapter)])
            bank.release(str(adapter.config))
        with torch.no_grad():
            found.append(model.network(ids).logits)
        bank.close()
    assert torch.allclose(*found, atol=1e-3)


@pytest.fixture(scope="module")
def bank(adapters: list[Adapter | None]) -> Iterator[AdapterCache]:
    """A bank, on a base of its own, with the four adapters in slots 0 to 3 and one in slot 8."""
    made = AdapterCache(Model.load(), 9)
    for n in range(8):
        adapter = adapters[1 + n % 4]
        assert adapter
        made.acquire(str(n), adapter)
    assert adapters[1] and made.acquire("far", adapters[1]) == 8
    yield made
    made.close()


@pytest.fixture(scope="module")
def by_slot(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> dict[tuple[int, int], torch.Tensor]:
    """Logits of 3 and of 1 token of the second prompt, by slot."""
    found = {}
    for slot, a in ((NO_SLOT, 0), (0, 1), (1, 2), (2, 3), (3, 4), (8, 1)):
        adapter = adapters[a]
        with model.using(*([adapter] if adapter else [])), torch.no_grad():
            for width in (3, 1):
                found[slot, width] = model.network(torch.tensor([prompts[1][:width]])).logits[0]
    return found


@given(slots=st.lists(st.sampled_from([NO_SLOT, 0, 1, 2, 3, 8]), min_size=1, max_size=7))
@example(slots=[3, 1, 0, 2])
@example(slots=[8, NO_SLOT, 1])
@example(slots=[2, 2, 1, NO_SLOT])
@pytest.mark.parametrize("width", [1, 3])
def test_a_row_gets_its_own_slot_whatever_the_others_use(
    by_slot: dict[tuple[int, int], torch.Tensor],
    bank: AdapterCache,
    prompts: list[tuple[int, ...]],
    width: int,
    slots: list[int],
) -> None:
    bank.binding.bind(slots)
    with torch.no_grad():
        found = bank.model.network(torch.tensor([prompts[1][:width]] * len(slots))).logits
    for row_TV, slot in zip(found, slots, strict=True):
        assert torch.allclose(row_TV, by_slot[slot, width], atol=1e-3)


def test_a_slot_filled_anew_between_two_passes_of_the_same_rows_is_used(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    one, two, three = adapters[1], adapters[2], adapters[4]
    assert one and two and three
    bank, ids = AdapterCache(model, 9), torch.tensor([prompts[1][:1]] * 2)
    try:
        for n in range(9):  # rows 0 and 8 of nine slots: copies, not views
            bank.acquire(str(n), one if n else two)
        bank.binding.bind([0, 8])
        with torch.no_grad():
            before = model.network(ids).logits
            for n in (0, 8):
                bank.release(str(n))
            bank.retain([str(n) for n in range(1, 8)])
            assert {bank.acquire("new", three), bank.acquire("newer", three)} == {0, 8}
            bank.binding.bind([0, 8])
            after = model.network(ids).logits
    finally:
        bank.close()
    assert not torch.allclose(before, after, atol=1e-2)
    assert torch.allclose(after[0], after[1], atol=1e-3)


@pytest.mark.parametrize("width", [1, 3])
def test_a_layer_that_meets_its_first_adapter_below_a_slot_in_use_has_room_for_both(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]], width: int
) -> None:
    attention, mlp = adapters[2], adapters[3]  # no module of one is one of the other
    assert attention and mlp
    ids = torch.tensor([prompts[1][:width]] * 2)
    expected = []
    for adapter in (mlp, attention):
        with model.using(adapter), torch.no_grad():
            expected.append(model.network(ids[:1]).logits[0])
    bank = AdapterCache(model, 2)
    try:
        bank.acquire("idle", attention)
        high = bank.acquire("busy", attention)
        bank.release("idle")
        slots = [bank.acquire("mlp", mlp), high]
        assert slots == [0, 1]
        for rows in (slots, [*slots, 0]):  # apart, and shared
            bank.binding.bind(rows)
            with torch.no_grad():
                found = model.network(ids[:1].expand(len(rows), -1)).logits
            for row_TV, wanted_TV in zip(found, expected, strict=False):
                assert torch.allclose(row_TV, wanted_TV, atol=1e-3)
    finally:
        bank.close()


def test_what_is_not_retained_leaves_nothing_in_memory(
    model: Model, adapters: list[Adapter | None]
) -> None:
    _, a, b, *_ = adapters
    assert a and b
    bank = AdapterCache(model, 2)
    try:
        bank.acquire("a", a)
        bank.acquire("b", b)
        bank.release("a")
        bank.retain(())
        assert set(bank.slots) == {"b"}  # it is held
        bank.release("b")
        bank.retain(())
        left = [layer.A_SIR for layer in bank.layers.values() if layer.A_SIR is not None]
        assert left and not any(A_SIR.any() for A_SIR in left)
    finally:
        bank.close()


def test_a_memory_that_does_not_fit_or_changes_nothing_is_not_served(
    model: Model, adapters: list[Adapter | None]
) -> None:
    fine = adapters[1]
    assert fine
    check(fine, model)
    with pytest.raises(WrongBase):
        check(replace(fine, base_digest="0" * 64), model)
    name = fine.modules[2] + ".lora_B.weight"
    dead = {**fine.tensors, name: torch.zeros_like(fine.tensors[name])}
    with pytest.raises(NoEffect, match=fine.modules[2]):
        check(replace(fine, tensors=dead), model)


def test_a_bank_does_not_go_onto_a_stack(model: Model) -> None:
    with attach(model.network, [LoraConfig(1)]), pytest.raises(AdapterError, match="already"):
        AdapterCache(model, 1)


# --- rows --------------------------------------------------------------------------------------

KINDS = {
    "llama": PaddedBatch,
    "qwen3": PaddedBatch,
    "phi": PaddedBatch,
    "phi3": PaddedBatch,
    "gpt_neox": PaddedBatch,
    "gemma3_text": SequentialBatch,  # its windows slide
    "qwen3_moe": PaddedBatch,  # its experts are fused and carry no adapter
}


@pytest.mark.parametrize("family", KINDS)
def test_every_family_says_in_company_what_it_says_alone(family: str) -> None:
    build: Callable[[], torch.nn.Module] = vars(families)[family]
    model = Model(build(), letters(), family)  # type: ignore[arg-type]
    targets = ("attention",) if family == "qwen3_moe" else ("all-linear",)
    made = [untrained(model, LoraConfig(2, targets=targets, seed=seed), 0.5) for seed in (1, 2)]
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [4] * 20]
    expected = []
    for adapter, prompt in zip([None, *made], prompts, strict=True):
        with model.using(*([adapter] if adapter else [])):
            ids = list(prompt)
            for _ in range(6):
                with torch.no_grad():
                    ids.append(int(model.network(torch.tensor([ids])).logits[0, -1].argmax()))
            expected.append(ids[len(prompt) :])
    bank = AdapterCache(model, 2)
    try:
        rows = batch_for(model, bank)
        assert type(rows) is KINDS[family]
        slots = [NO_SLOT, *(bank.acquire(str(i), adapter) for i, adapter in enumerate(made))]
        found = [[int(id)] for id in rows.add(prompts, slots).argmax(-1)]
        while len(found[0]) < 6:
            step = rows.step([said[-1] for said in found]).argmax(-1)
            for said, id in zip(found, step.tolist(), strict=True):
                said.append(id)
    finally:
        bank.close()
    assert found == expected


def test_rows_that_leave_are_filled_from_the_end(
    model: Model, prompts: list[tuple[int, ...]]
) -> None:
    bank = AdapterCache(model, 1)
    try:
        rows = batch_for(model, bank)
        first = rows.add([*prompts, *prompts], [NO_SLOT] * 6).argmax(-1).tolist()
        order = rows.keep([1, 4, 5])
        assert sorted(order) == [1, 4, 5] and len(rows) == 3
        found = rows.step([first[i] for i in order])
        expected = batch_for(model, bank).add(
            [[*prompts[i % 3], first[i]] for i in order], [-1] * 3
        )
        assert torch.allclose(found, expected, atol=1e-3)
    finally:
        bank.close()


def test_many_prompts_are_read_in_several_passes(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5 + i] * n for i, n in enumerate((30, 40, 90, 20, 20, 200, 10))]
    bank = AdapterCache(model, 1)
    try:
        rows = batch_for(model, bank)
        whole = rows.add(prompts, [NO_SLOT] * len(prompts))
        rows.keep([])
        monkeypatch.setattr(lorewright.serve.batch, "PREFILL_TOKENS", 100)
        passes = list_passes(model, monkeypatch)
        assert torch.allclose(
            rows.add(prompts, [NO_SLOT] * len(prompts)), whole, atol=1e-3, rtol=1e-3
        )
        assert passes == [2, 1, 2, 1, 1]
    finally:
        bank.close()


def list_passes(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every pass from now on."""
    found: list[int] = []
    forward = model.network.forward

    def counted(*args: Any, **named: Any) -> Any:
        found.append(len(named["input_ids"]))
        return forward(*args, **named)

    monkeypatch.setattr(model.network, "forward", counted)
    return found


# --- tokens ------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.05, 1.0), st.integers(0, 999)
)
def test_a_draw_stays_inside_the_nucleus(logits: list[float], top_p: float, seed: int) -> None:
    logits_V = torch.tensor(logits)
    p = torch.softmax(logits_V.double(), -1)
    found = draw(logits_V, 1.0, top_p, torch.Generator().manual_seed(seed))
    before = float(p[p > p[found]].sum())  # mass of what is more probable than the drawn one
    assert before <= top_p + 1e-9


def test_a_low_temperature_is_nearly_greedy() -> None:
    logits = torch.tensor([1.0, 1.2, 0.9])
    found = [draw(logits, 0.01, 1.0, torch.Generator().manual_seed(i)) for i in range(20)]
    assert set(found) == {1}


# --- text --------------------------------------------------------------------------------------

TEXTS = st.text(alphabet="ab .STOP\n", max_size=24)


@given(TEXTS, st.integers(1, 5), st.booleans())
def test_a_reply_heard_in_pieces_is_the_reply_heard_at_once(
    text: str, step: int, strip: bool
) -> None:
    model = Model.load() if not MODELS else MODELS[0]
    MODELS[:] = [model]
    ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = model.tokenizer.decode(ids, skip_special_tokens=True)
    expected = whole.partition("STOP")[0]
    speaker = Detokenizer(model.tokenizer, ["STOP"], strip=strip)
    said = [speaker.push(ids[at : at + step]) for at in range(0, len(ids), step)]
    said.append(speaker.finish())
    assert "".join(said) == (expected.strip() if strip else expected)
    assert speaker.stopped == ("STOP" in whole)


MODELS: list[Model] = []


def test_half_a_character_waits_for_the_other_half(model: Model) -> None:
    text = "naïve 🜚 end"
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = model.tokenizer.decode(ids, skip_special_tokens=True)
    speaker = Detokenizer(model.tokenizer)
    said = [speaker.push([id]) for id in ids]
    assert "".join(said) + speaker.finish() == whole
    assert not any("\ufffd" in each for each in said) or "\ufffd" in whole
