"""Claims about what answers inside the server: the cache, the rows, the scheduler, the text.

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
from lorewright.errors import AdapterError, ModelError, NoEffect, WrongBase
from lorewright.models.model import Model, Rendered
from lorewright.recall.traces import trace
from lorewright.serve.adapter_cache import NO_SLOT, AdapterCache, check
from lorewright.serve.batch import PaddedBatch, SequentialBatch, batch_for
from lorewright.serve.protocol import APIError, ChatRequest, TextRequest
from lorewright.serve.scheduler import Job, Output, Scheduler, draw
from lorewright.serve.text import Detokenizer, Tokenization


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


ROUNDING = 384 * 10 * 2 * torch.finfo(torch.float32).eps
"""How far two orders of summation may differ in a logit: the widest sum of the embedded base, times
its largest logit, with an adapter of the same size; 9e-4."""

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
    results = {}
    for a, adapter in enumerate(adapters):
        with model.using(*([adapter] if adapter else [])):
            for p, prompt in enumerate(prompts):
                (results[a, p],) = model.generate_ids([prompt], max_new_tokens=12)
    assert len({tuple(texts) for texts in results.values()}) > len(adapters), "they must differ"
    return results


@pytest.fixture
def scheduler(model: Model) -> Iterator[Scheduler]:
    built = Scheduler(model, max_rows=5)
    built.start()
    yield built
    built.stop()


class Recorder:
    """Collects a job's outputs; `wait` returns their ids."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.ended = threading.Event()

    def __call__(self, output: Output) -> None:
        self.outputs.append(output)
        if output.finish:
            self.ended.set()

    def wait(self) -> tuple[list[int], str]:
        """Token ids and the finish, once there is one."""
        assert self.ended.wait(30)
        ids = [token.id for output in self.outputs for token in output.tokens]
        return ids, self.outputs[-1].finish


def plain(model: Model, text: str) -> tuple[int, ...]:
    """Ids of plain text after the start token."""
    return (
        *model.render("").prompt_ids,
        *model.tokenizer(text, add_special_tokens=False)["input_ids"],
    )


def job(
    prompt: Sequence[int], recorder: Recorder, adapter: Adapter | None = None, n: int = 12
) -> Job:
    """A greedy job; the adapter's configuration stands for its content."""
    identity = str(adapter.config) if adapter else ""
    return Job(prompt, n, recorder, adapter=adapter, adapter_id=identity)


# --- the scheduler --------------------------------------------------------------------------------


def test_a_batch_of_different_memories_says_what_each_says_alone(
    scheduler: Scheduler,
    adapters: list[Adapter | None],
    prompts: list[tuple[int, ...]],
    alone: dict[tuple[int, int], list[int]],
) -> None:
    recorders = {key: Recorder() for key in alone}
    for (a, p), recorder in recorders.items():  # 15 jobs, 5 rows: they join as others leave
        assert scheduler.submit([job(prompts[p], recorder, adapters[a])])
    for key, recorder in recorders.items():
        ids, finish = recorder.wait()
        assert ids == alone[key], key
        assert finish == ("length" if len(ids) == 12 else "stop")


def test_a_job_that_joins_late_changes_nothing_for_those_that_run(
    scheduler: Scheduler,
    adapters: list[Adapter | None],
    prompts: list[tuple[int, ...]],
    alone: dict[tuple[int, int], list[int]],
) -> None:
    first, second = Recorder(), Recorder()
    started = threading.Event()
    running = job(prompts[1], first, adapters[1])
    running.deliver = lambda output: (first(output), started.set())[0]  # type: ignore[func-returns-value]
    scheduler.submit([running])
    assert started.wait(30)
    scheduler.submit([job(prompts[2], second, adapters[3])])
    assert first.wait()[0] == alone[1, 1]
    assert second.wait()[0] == alone[3, 2]


def test_only_the_whole_reply_is_delivered_when_that_is_asked_for(
    scheduler: Scheduler, prompts: list[tuple[int, ...]], alone: dict[tuple[int, int], list[int]]
) -> None:
    recorder = Recorder()
    request = job(prompts[1], recorder)
    request.stream = False
    scheduler.submit([request])
    assert recorder.wait()[0] == alone[0, 1]
    assert len(recorder.outputs) == 1


def test_logprobs_are_those_of_teacher_forcing(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    adapter = adapters[1]
    assert adapter
    scheduler = Scheduler(model, max_rows=2)
    scheduler.start()
    recorder = Recorder()
    request = replace(job(prompts[1], recorder, adapter), n_top=3, ignore_stop=True)
    scheduler.submit([request])
    ids, _ = recorder.wait()
    scheduler.stop()
    with model.using(adapter):
        (expected,) = trace(model, [Rendered(prompts[1], tuple(ids))])
    tokens = [token for output in recorder.outputs for token in output.tokens]
    results = [2.718281828459045 ** (token.logprob or 0) for token in tokens]
    assert results == pytest.approx(expected.p, abs=ROUNDING / 2)  # dp <= 2 p (1 - p) dz
    assert all(token.top[0][0] == token.id and len(token.top) == 3 for token in tokens)


def test_a_seed_repeats_a_drawn_reply_in_any_company(
    scheduler: Scheduler, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    def drawn(seed: int, company: int) -> list[int]:
        recorder = Recorder()
        request = replace(job(prompts[1], recorder), temperature=1.5, seed=seed, ignore_stop=True)
        others = [job(prompts[2], Recorder(), adapters[i + 1]) for i in range(company)]
        scheduler.submit([*others, request])
        return recorder.wait()[0]

    assert drawn(7, 0) == drawn(7, 3)
    assert drawn(7, 0) != drawn(8, 0)


def test_a_cancelled_job_makes_room_and_gets_nothing_more(
    model: Model, prompts: list[tuple[int, ...]]
) -> None:
    scheduler = Scheduler(model, max_rows=1)
    scheduler.start()
    endless, started, next_one = Recorder(), threading.Event(), Recorder()

    def record(output: Output) -> None:
        endless(output)
        started.set()

    long = replace(job(prompts[0], endless, n=500), deliver=record, ignore_stop=True)
    scheduler.submit([long])
    assert started.wait(30)
    scheduler.cancel(long)
    scheduler.submit([job(prompts[1], next_one)])
    next_one.wait()
    scheduler.stop()
    assert not endless.ended.is_set()
    assert sum(len(output.tokens) for output in endless.outputs) < 500


def test_stopping_finishes_what_was_taken_and_gives_the_base_back(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    ids = torch.tensor([prompts[1]])
    with torch.no_grad():
        before = model.network(ids).logits
    scheduler = Scheduler(model, max_rows=2)
    scheduler.start()
    recorders = [Recorder() for _ in range(6)]
    for i, recorder in enumerate(recorders):
        scheduler.submit([job(prompts[i % 3], recorder, adapters[i % 5])])
    scheduler.stop()
    assert all(recorder.ended.is_set() for recorder in recorders)
    with torch.no_grad():
        assert torch.equal(model.network(ids).logits, before)
    with pytest.raises(ModelError, match="has ended"):
        scheduler.submit([job(prompts[0], Recorder())])


def test_a_full_queue_takes_none_of_several_jobs(
    model: Model, prompts: list[tuple[int, ...]]
) -> None:
    scheduler = Scheduler(model, max_rows=1, max_waiting=3)  # not started: everything waits
    try:
        assert scheduler.submit([job(prompts[0], Recorder())] * 2)
        assert not scheduler.submit([job(prompts[0], Recorder())] * 2)
        assert scheduler.gauges()["jobs_waiting"] == 2
    finally:
        scheduler.stop()


def test_a_step_that_fails_ends_its_jobs_and_no_others(
    scheduler: Scheduler,
    prompts: list[tuple[int, ...]],
    alone: dict[tuple[int, int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(ids: Sequence[int]) -> torch.Tensor:
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scheduler.batch, "step", broken)
    unlucky, lucky = Recorder(), Recorder()
    scheduler.submit([job(prompts[0], unlucky)])
    assert unlucky.wait()[1] == "failed"
    assert "out of memory" in str(unlucky.outputs[-1].error)
    scheduler.submit([job(prompts[1], lucky)])
    assert lucky.wait()[0] == alone[0, 1]


def test_a_job_whose_logits_are_not_finite_fails_alone_and_leaves_its_row_clean(
    scheduler: Scheduler,
    poison: Adapter,
    adapters: list[Adapter | None],
    prompts: list[tuple[int, ...]],
    alone: dict[tuple[int, int], list[int]],
) -> None:
    for _ in range(2):  # the second time in the rows that the first one left
        failing = Recorder()
        recorders = {(a, 1): Recorder() for a in range(1, 5)}
        long = [*prompts[1], *prompts[2]]  # longer than the prompts that take its row after it
        jobs = [job(prompts[p], recorder, adapters[a]) for (a, p), recorder in recorders.items()]
        assert scheduler.submit([job(long, failing, poison), *jobs])
        assert failing.wait()[1] == "failed"
        assert "not finite" in str(failing.outputs[-1].error)
        for key, recorder in recorders.items():
            assert recorder.wait()[0] == alone[key], key


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-9, 1e-4])
def test_a_tiny_temperature_is_greedy(
    scheduler: Scheduler,
    prompts: list[tuple[int, ...]],
    alone: dict[tuple[int, int], list[int]],
    temperature: float,
) -> None:
    recorder = Recorder()
    assert scheduler.submit([replace(job(prompts[1], recorder), temperature=temperature)])
    assert recorder.wait()[0] == alone[0, 1]


# --- the adapter cache --------------------------------------------------------------------------


def test_slots_are_reused_least_recent_first_and_never_while_held(
    model: Model, adapters: list[Adapter | None]
) -> None:
    _, a, b, c, d = adapters
    assert a and b and c and d
    cache = AdapterCache(model, 2)
    try:
        slot = cache.acquire("a", a)
        assert cache.acquire("b", b) != slot
        with pytest.raises(AdapterError, match="all 2 slots are in use"):
            cache.acquire("c", c)
        cache.release("a")
        assert cache.acquire("c", c) == slot
        assert set(cache.slots) == {"b", "c"}
        assert cache.acquire("b", b) != slot
        cache.release("b")
        with pytest.raises(AdapterError, match="in use"):
            cache.acquire("d", d)  # b is held once more
    finally:
        cache.close()


def test_a_slot_that_is_filled_anew_keeps_nothing_of_what_it_held(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    wide, narrow = adapters[1], adapters[2]  # all layers at rank 4; attention only at rank 2
    assert wide and narrow
    ids = torch.tensor([prompts[1]])
    results = []
    for order in ([narrow], [wide, narrow]):
        cache = AdapterCache(model, 1)
        for adapter in order:
            cache.binding.bind([cache.acquire(str(adapter.config), adapter)])
            cache.release(str(adapter.config))
        with torch.no_grad():
            results.append(model.network(ids).logits)
        cache.close()
    assert torch.allclose(*results, atol=ROUNDING)


@pytest.fixture(scope="module")
def cache(adapters: list[Adapter | None]) -> Iterator[AdapterCache]:
    """A cache, on a base of its own, with the four adapters in slots 0 to 3 and one in slot 8."""
    built = AdapterCache(Model.load(), 9)
    for n in range(8):
        adapter = adapters[1 + n % 4]
        assert adapter
        built.acquire(str(n), adapter)
    assert adapters[1] and built.acquire("far", adapters[1]) == 8
    yield built
    built.close()


@pytest.fixture(scope="module")
def by_slot(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> dict[tuple[int, int], torch.Tensor]:
    """Logits of 3 and of 1 token of the second prompt, by slot."""
    results = {}
    for slot, a in ((NO_SLOT, 0), (0, 1), (1, 2), (2, 3), (3, 4), (8, 1)):
        adapter = adapters[a]
        with model.using(*([adapter] if adapter else [])), torch.no_grad():
            for width in (3, 1):
                results[slot, width] = model.network(torch.tensor([prompts[1][:width]])).logits[0]
    return results


@given(slots=st.lists(st.sampled_from([NO_SLOT, 0, 1, 2, 3, 8]), min_size=1, max_size=7))
@example(slots=[3, 1, 0, 2])
@example(slots=[8, NO_SLOT, 1])
@example(slots=[2, 2, 1, NO_SLOT])
@pytest.mark.parametrize("width", [1, 3])
def test_a_row_gets_its_own_slot_whatever_the_others_use(
    by_slot: dict[tuple[int, int], torch.Tensor],
    cache: AdapterCache,
    prompts: list[tuple[int, ...]],
    width: int,
    slots: list[int],
) -> None:
    cache.binding.bind(slots)
    with torch.no_grad():
        results = cache.model.network(torch.tensor([prompts[1][:width]] * len(slots))).logits
    for row_TV, slot in zip(results, slots, strict=True):
        assert torch.allclose(row_TV, by_slot[slot, width], atol=ROUNDING)


def test_a_slot_filled_anew_between_two_passes_of_the_same_rows_is_used(
    model: Model, adapters: list[Adapter | None], prompts: list[tuple[int, ...]]
) -> None:
    one, two, three = adapters[1], adapters[2], adapters[4]
    assert one and two and three
    cache, ids = AdapterCache(model, 9), torch.tensor([prompts[1][:1]] * 2)
    try:
        for n in range(9):  # rows 0 and 8 of nine slots: copies, not views
            cache.acquire(str(n), one if n else two)
        cache.binding.bind([0, 8])
        with torch.no_grad():
            before = model.network(ids).logits
            for n in (0, 8):
                cache.release(str(n))
            cache.retain([str(n) for n in range(1, 8)])
            assert {cache.acquire("new", three), cache.acquire("newer", three)} == {0, 8}
            cache.binding.bind([0, 8])
            after = model.network(ids).logits
    finally:
        cache.close()
    assert not torch.allclose(before, after, atol=10 * ROUNDING)
    assert torch.allclose(after[0], after[1], atol=ROUNDING)


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
    cache = AdapterCache(model, 2)
    try:
        cache.acquire("idle", attention)
        high = cache.acquire("busy", attention)
        cache.release("idle")
        slots = [cache.acquire("mlp", mlp), high]
        assert slots == [0, 1]
        for rows in (slots, [*slots, 0]):  # apart, and shared
            cache.binding.bind(rows)
            with torch.no_grad():
                results = model.network(ids[:1].expand(len(rows), -1)).logits
            for row_TV, wanted_TV in zip(results, expected, strict=False):
                assert torch.allclose(row_TV, wanted_TV, atol=ROUNDING)
    finally:
        cache.close()


@pytest.fixture(scope="module")
def poison(adapters: list[Adapter | None]) -> Adapter:
    """An adapter of finite numbers whose product with any input overflows float32."""
    fine = adapters[1]
    assert fine
    largest = 3e38
    tensors = {
        name: torch.full_like(t, largest) if ".lora_A." in name else t * 1e-6
        for name, t in fine.tensors.items()
    }
    return replace(fine, tensors=tensors, config=replace(fine.config, seed=99))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("slots", [[0, 8, NO_SLOT, 1], [8, 0, 0, 8, 1], [3, 8], [8, NO_SLOT, 8]])
def test_a_row_that_overflows_leaves_every_other_row_as_it_is(
    cache: AdapterCache,
    poison: Adapter,
    by_slot: dict[tuple[int, int], torch.Tensor],
    adapters: list[Adapter | None],
    prompts: list[tuple[int, ...]],
    slots: list[int],
    width: int,
) -> None:
    cache.release("far")
    cache.retain([str(n) for n in range(8)])
    try:
        assert cache.acquire("poison", poison) == 8
        cache.binding.bind(slots)
        with torch.no_grad():
            logits = cache.model.network(torch.tensor([prompts[1][:width]] * len(slots))).logits
        for row_TV, slot in zip(logits, slots, strict=True):
            if slot == 8:
                assert not row_TV.isfinite().all()
            else:
                assert torch.allclose(row_TV, by_slot[slot, width], atol=ROUNDING)
    finally:
        cache.release("poison")
        cache.retain([str(n) for n in range(8)])
        assert adapters[1]
        cache.acquire("far", adapters[1])


def test_what_is_not_retained_leaves_nothing_in_memory(
    model: Model, adapters: list[Adapter | None]
) -> None:
    _, a, b, *_ = adapters
    assert a and b
    cache = AdapterCache(model, 2)
    try:
        cache.acquire("a", a)
        cache.acquire("b", b)
        cache.release("a")
        cache.retain(())
        assert set(cache.slots) == {"b"}  # it is held
        cache.release("b")
        cache.retain(())
        left = [layer.A_SIR for layer in cache.layers.values() if layer.A_SIR is not None]
        assert left and not any(A_SIR.any() for A_SIR in left)
    finally:
        cache.close()


def test_a_memory_that_does_not_fit_or_changes_nothing_is_not_served(
    model: Model, adapters: list[Adapter | None]
) -> None:
    fine = adapters[1]
    assert fine
    check(fine, model)
    with pytest.raises(WrongBase):
        check(replace(fine, base_digest="0" * 64), model)
    dead = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in fine.tensors.items()}
    with pytest.raises(NoEffect, match="weight change of zero"):
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
    built = [untrained(model, LoraConfig(2, targets=targets, seed=seed), 0.5) for seed in (1, 2)]
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [4] * 20]
    expected = []
    for adapter, prompt in zip([None, *built], prompts, strict=True):
        with model.using(*([adapter] if adapter else [])):
            ids = list(prompt)
            for _ in range(6):
                with torch.no_grad():
                    ids.append(int(model.network(torch.tensor([ids])).logits[0, -1].argmax()))
            expected.append(ids[len(prompt) :])
    cache = AdapterCache(model, 2)
    try:
        rows = batch_for(model, cache)
        assert type(rows) is KINDS[family]
        slots = [NO_SLOT, *(cache.acquire(str(i), adapter) for i, adapter in enumerate(built))]
        results = [[int(id)] for id in rows.add(prompts, slots).argmax(-1)]
        while len(results[0]) < 6:
            step = rows.step([ids[-1] for ids in results]).argmax(-1)
            for ids, id in zip(results, step.tolist(), strict=True):
                ids.append(id)
    finally:
        cache.close()
    assert results == expected


def test_rows_that_leave_are_filled_from_the_end(
    model: Model, prompts: list[tuple[int, ...]]
) -> None:
    cache = AdapterCache(model, 1)
    try:
        rows = batch_for(model, cache)
        first = rows.add([*prompts, *prompts], [NO_SLOT] * 6).argmax(-1).tolist()
        order = rows.keep([1, 4, 5])
        assert sorted(order) == [1, 4, 5] and len(rows) == 3
        results = rows.step([first[i] for i in order])
        expected = batch_for(model, cache).add(
            [[*prompts[i % 3], first[i]] for i in order], [-1] * 3
        )
        assert torch.allclose(results, expected, atol=ROUNDING)
    finally:
        cache.close()


def test_many_prompts_are_read_in_several_passes(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5 + i] * n for i, n in enumerate((30, 40, 90, 20, 20, 200, 10))]
    cache = AdapterCache(model, 1)
    try:
        rows = batch_for(model, cache)
        whole = rows.add(prompts, [NO_SLOT] * len(prompts))
        rows.keep([])
        monkeypatch.setattr(lorewright.serve.batch, "PREFILL_TOKENS", 100)
        passes = list_passes(model, monkeypatch)
        assert torch.allclose(rows.add(prompts, [NO_SLOT] * len(prompts)), whole, atol=ROUNDING)
        assert passes == [2, 1, 2, 1, 1]
    finally:
        cache.close()


def list_passes(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every pass from now on."""
    results: list[int] = []
    forward = model.network.forward

    def counted(*args: Any, **named: Any) -> Any:
        results.append(len(named["input_ids"]))
        return forward(*args, **named)

    monkeypatch.setattr(model.network, "forward", counted)
    return results


# --- tokens ------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.05, 1.0), st.integers(0, 999)
)
def test_a_draw_stays_inside_the_nucleus(logits: list[float], top_p: float, seed: int) -> None:
    logits_V = torch.tensor(logits)
    p = torch.softmax(logits_V.double(), -1)
    results = draw(logits_V, 1.0, top_p, torch.Generator().manual_seed(seed))
    before = float(p[p > p[results]].sum())  # mass of what is more probable than the drawn one
    assert before <= top_p + 1e-9


def test_a_low_temperature_is_nearly_greedy() -> None:
    logits = torch.tensor([1.0, 1.2, 0.9])
    results = [draw(logits, 0.01, 1.0, torch.Generator().manual_seed(i)) for i in range(20)]
    assert set(results) == {1}


@pytest.mark.parametrize("name", ["messages", "prompt"])
def test_a_long_text_is_refused_by_its_characters_before_it_is_tokenised(
    model: Model, name: str
) -> None:
    text = "a" * 1_000_000
    body = {"messages": [{"role": "user", "content": text}]} if name == "messages" else {name: text}
    request = (ChatRequest if name == "messages" else TextRequest)(model="pocket", **body)
    with pytest.raises(APIError, match="1000000 characters are too many") as refused:
        Tokenization(model, 512).prompts(request)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", name)


# --- text --------------------------------------------------------------------------------------

TEXTS = st.text(alphabet="ab .STOP\n", max_size=24)


@given(TEXTS, st.integers(1, 5), st.booleans())
def test_a_reply_decoded_in_pieces_is_the_reply_decoded_at_once(
    text: str, step: int, strip: bool
) -> None:
    model = Model.load() if not MODELS else MODELS[0]
    MODELS[:] = [model]
    ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = model.tokenizer.decode(ids, skip_special_tokens=True)
    expected = whole.partition("STOP")[0]
    detokenizer = Detokenizer(model.tokenizer, ["STOP"], strip=strip)
    texts = [detokenizer.push(ids[at : at + step]) for at in range(0, len(ids), step)]
    texts.append(detokenizer.finish())
    assert "".join(texts) == (expected.strip() if strip else expected)
    assert detokenizer.stopped == ("STOP" in whole)


MODELS: list[Model] = []


def test_half_a_character_waits_for_the_other_half(model: Model) -> None:
    text = "naïve 🜚 end"
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = model.tokenizer.decode(ids, skip_special_tokens=True)
    detokenizer = Detokenizer(model.tokenizer)
    texts = [detokenizer.push([id]) for id in ids]
    assert "".join(texts) + detokenizer.finish() == whole
    assert not any("\ufffd" in each for each in texts) or "\ufffd" in whole
