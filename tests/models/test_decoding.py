"""Claims about free-running replies: those of plain greedy decoding, whatever is shared or guessed.

Plain decoding here: one row, no cache, the whole text again for every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.families import FAMILIES, gpt_neox, llama, mistral, phi, qwen2, qwen3
from support.models import an_adapter, letters

from lorewright.errors import AdapterError, ConfigError, ModelError
from lorewright.models.backends.growing import PREFIX_TOKENS
from lorewright.models.backends.reduced import Reduced
from lorewright.models.decoding import LOOP_TOKENS, Sampling, loops
from lorewright.models.fingerprint import fingerprint
from lorewright.models.model import Model

DOCUMENT = list(range(3, 43))
ROWS = [
    [*DOCUMENT, 50],
    [*DOCUMENT, 51, 52, 53, 54],
    [*DOCUMENT[:30], 60, 61],
    [*DOCUMENT],
    [9, 8, 7],
    [5],
]


def model_of(family: str) -> Model:
    """A tiny base in float64 whose replies differ from row to row."""
    network = FAMILIES[family]().double()
    head = network.get_output_embeddings()
    head.weight.data.mul_(40)
    return Model(network, letters(None), family)


@torch.no_grad()
def plain(model: Model, row: Sequence[int], n: int) -> list[int]:
    ids = list(row)
    while len(ids) < len(row) + n and len(ids) < model.context:
        best = int(model.network(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if best in (2,):
            break
        ids.append(best)
    return ids[len(row) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_those_of_plain_decoding(family: str) -> None:
    model = model_of(family)
    expected = [plain(model, row, 10) for row in ROWS]
    assert model.generate_ids(ROWS, max_new_tokens=10) == expected
    assert len({tuple(ids) for ids in expected}) > 2
    halves = [each[:5] for each in expected]
    guesses = [*halves[:2], [77, *halves[2]], [*halves[3], 77, 78, 79], [], expected[5] * 3]
    assert model.generate_ids(ROWS, max_new_tokens=10, guesses=guesses) == expected
    assert model.generate_ids(ROWS, max_new_tokens=10, batch_size=2) == expected


@pytest.mark.parametrize("make", [llama, mistral, qwen2, qwen3])
def test_llamas_family_grows_rows_by_itself(make: object) -> None:
    assert callable(make)
    model = Model(make(), letters(None), "tiny")
    handle = model.network.register_forward_hook(lambda *args: pytest.fail("the whole network ran"))
    assert len(model.generate_ids(ROWS, max_new_tokens=3)) == len(ROWS)
    handle.remove()


@pytest.mark.parametrize("make", [llama, gpt_neox])
def test_rows_of_different_adapters_share_a_batch(make: object) -> None:
    assert callable(make)
    network = make().double()
    network.get_output_embeddings().weight.data.mul_(40)
    model = Model(network, letters(None), "tiny")
    adapters = [an_adapter(model, seed=seed) for seed in (1, 2)]
    rows = [ROWS[0], ROWS[0], ROWS[4], ROWS[1]]
    expected = []
    for row, n in zip(rows, (0, 1, 1, -1), strict=True):
        with model.using(*(adapters[n : n + 1] if n >= 0 else ())):
            expected.append(plain(model, row, 8))
    with model.using(*adapters) as stack:
        assert stack is not None
        stack.bind(torch.tensor([0, 1, 1, -1]))
        assert model.generate_ids(rows, max_new_tokens=8) == expected
        with pytest.raises(AdapterError, match="4 rows are bound; the batch has 2"):
            model.generate_ids(rows[:2], max_new_tokens=8)
    assert expected[0] != expected[1]


@pytest.mark.parametrize("make", [llama, gpt_neox])
@pytest.mark.parametrize("limits", [(9, 9, 2), (2, 9, 9), (9, 2, 9), (9, 2, 2)])
def test_the_rows_of_any_adapter_may_leave_first(make: object, limits: tuple[int, ...]) -> None:
    assert callable(make)
    network = make().double()
    network.get_output_embeddings().weight.data.mul_(40)
    model = Model(network, letters(None), "tiny")
    adapters = [an_adapter(model, seed=seed) for seed in (1, 2, 3)]
    expected = []
    for row, adapter, n in zip(ROWS, adapters, limits, strict=False):
        with model.using(adapter):
            expected.append(plain(model, row, n))
    with model.using(*adapters) as stack:
        assert stack is not None
        stack.bind(torch.arange(3))
        assert model.generate_ids(ROWS[:3], max_new_tokens=limits) == expected


@pytest.mark.parametrize("make", [llama, gpt_neox])
def test_in_bfloat16_every_token_is_as_likely_as_the_best_to_rounding(make: object) -> None:
    """As near as some hundred roundings to 8 bits are in a row; the network is as it was."""
    assert callable(make)
    model = Model(make(), letters(None), "tiny")
    replies = model.generate_ids(ROWS, max_new_tokens=8, reduced=Reduced())
    assert all(replies) and model.digest == fingerprint(model.network)
    for row, reply in zip(ROWS, replies, strict=True):
        with torch.no_grad():
            ids_1T = torch.tensor([[*row, *reply]])
            logits_TV = model.network(ids_1T, use_cache=False).logits[0, len(row) - 1 : -1]
        chosen_T = logits_TV.gather(1, torch.tensor(reply)[:, None])[:, 0]
        slack = 16 * torch.finfo(torch.bfloat16).eps * logits_TV.abs().max()
        assert (logits_TV.max(1).values - chosen_T <= slack).all()
    assert model.generate_ids(ROWS, max_new_tokens=8) == [plain(model, row, 8) for row in ROWS]


def test_a_shared_document_and_right_guesses_save_passes() -> None:
    model = model_of("llama")
    rows = ROWS[:2] * 4
    right = [[*plain(model, row, 10), 2] for row in rows]
    passes: list[tuple[int, int]] = []
    model.generate_ids(
        rows,
        max_new_tokens=10,
        guesses=right,
        progress=lambda done, total: passes.append((done, total)),
    )
    assert len(passes) <= 3  # the document, and what follows it
    assert passes[-1][0] - sum(map(len, right)) <= len(DOCUMENT) + 4 * (1 + 4)


def test_a_long_document_is_read_in_parts() -> None:
    network = llama(max_position_embeddings=2048).double()
    network.get_output_embeddings().weight.data.mul_(40)
    model = Model(network, letters(None), "tiny")
    document = torch.randint(3, 100, (PREFIX_TOKENS + 300,)).tolist()
    rows = [[*document, 5], [*document, 9, 7]]
    parts: list[int] = []
    replies = model.generate_ids(
        rows, max_new_tokens=4, progress=lambda done, total: parts.append(done)
    )
    assert replies == [plain(model, row, 4) for row in rows]
    assert parts[:2] == [PREFIX_TOKENS, len(document)]


def test_progress_never_falls_and_ends_at_all_there_is() -> None:
    shares: list[float] = []

    def progress(done: int, total: int) -> None:
        shares.append(done / total)

    for model in (model_of("llama"), model_of("gpt_neox")):
        shares.clear()
        model.generate_ids(ROWS, max_new_tokens=10, progress=progress)
        assert shares == sorted(shares) and shares[-1] == 1


@pytest.mark.parametrize("make", [llama, phi])
def test_a_reply_ends_where_it_is_to_end_and_is_reported_once(make: object) -> None:
    assert callable(make)
    network = make()
    network.get_output_embeddings().weight.data.mul_(40)
    model = Model(network, letters(), "tiny")
    prompts = ["Who is it?", "Who is it, then?", "When?"]
    whole = model.generate(prompts, max_new_tokens=12)
    longest = max(whole, key=len)
    stop = longest[4:6]
    found: dict[int, str] = {}
    stopped = model.generate(
        prompts, max_new_tokens=12, stop=[stop], on_reply=lambda i, text: found.update({i: text})
    )
    assert stopped == [text.split(stop)[0].strip() for text in whole]
    assert [found[i] for i in range(3)] == stopped != whole
    short = model.generate(
        prompts,
        max_new_tokens=12,
        until=lambda i, text, ids: text[: i + 1] if len(text) > 4 else None,
    )
    assert short == [text[: i + 1].strip() for i, text in enumerate(whole)]
    assert all(len(text) > 4 for text in whole)


def test_every_reply_has_a_limit_of_its_own() -> None:
    for model in (model_of("llama"), model_of("gpt_neox")):
        limits = [1, 7, 3, 2, 9, 4]
        replies = model.generate_ids(ROWS, max_new_tokens=limits)
        assert replies == [plain(model, row, n) for row, n in zip(ROWS, limits, strict=True)]


# --- sampling


def test_a_sample_depends_on_seed_and_number_and_not_on_the_batch() -> None:
    model = model_of("llama")
    four = Sampling(temperature=30.0, n=4, seed=3)
    together = model.generate_ids(ROWS, max_new_tokens=6, sampling=four)
    assert together == model.generate_ids(ROWS, max_new_tokens=6, sampling=four, batch_size=4)
    assert len(together) == 4 * len(ROWS) and len({tuple(each) for each in together[:4]}) == 4
    other = model.generate_ids(ROWS, max_new_tokens=6, sampling=Sampling(30.0, n=4, seed=4))
    assert together != other


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_smallest_nucleus_is_greedy(family: str) -> None:
    model = model_of(family)
    greedy = model.generate_ids(ROWS, max_new_tokens=6)
    least = Sampling(temperature=1.0, top_p=1e-9, n=2)
    drawn = model.generate_ids(ROWS, max_new_tokens=6, sampling=least)
    assert drawn == [ids for ids in greedy for _ in range(2)]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    p_V = torch.tensor([0.5, 0.3, 0.15, 0.05])
    uniform = [(i + 0.5) / 2000 for i in range(2000)]
    drawn = Sampling(1.0).draw(p_V.log().expand(2000, -1), uniform)
    assert [drawn.count(i) / 2000 for i in range(4)] == pytest.approx(p_V.tolist(), abs=1e-3)
    nucleus = Sampling(1.0, top_p=0.7).draw(p_V.log().expand(2000, -1), uniform)
    assert [nucleus.count(i) / 2000 for i in range(4)] == pytest.approx(
        [0.625, 0.375, 0, 0], abs=1e-3
    )


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"n": 0}])
def test_sampling_that_draws_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="give a temperature above 0"):
        Sampling(**wrong)  # type: ignore[arg-type]


# --- loops


def test_a_reply_ends_as_soon_as_it_goes_round_in_circles_where_that_is_wanted() -> None:
    network, tokenizer = llama(), letters()
    network.get_input_embeddings().weight.data.fill_(1.0)  # whatever came, the same follows
    head = torch.zeros_like(network.get_output_embeddings().weight)
    for letter, sign in (("a", 1.0), ("b", -1.0)):
        head[tokenizer.convert_tokens_to_ids(letter)] = sign
    network.get_output_embeddings().weight.data = head
    model = Model(network, tokenizer, "tiny")
    (whole,) = model.generate(["a"], max_new_tokens=40)
    (short,) = model.generate(["a"], max_new_tokens=40, end_loops=True)
    assert len(whole) > len(short) == LOOP_TOKENS
    assert whole.startswith(short)


@given(
    part=st.lists(st.integers(0, 9), min_size=1, max_size=20), before=st.lists(st.integers(0, 9))
)
def test_three_times_the_same_is_a_loop_when_it_is_long(part: list[int], before: list[int]) -> None:
    n = max(3, -(-LOOP_TOKENS // len(part)))
    assert loops([*before, *part * n])


def test_what_gets_on_is_no_loop() -> None:
    assert not loops(list(range(100)))
    assert not loops([1, 2, 3, 4] * 3)
    assert not loops([i for n in range(20) for i in (1, 2, n)])


def test_a_plain_decoder_with_a_hook_decodes_as_without_and_draws_nothing() -> None:
    pocket = Model.load()
    prompts = ["What is the tide?", "Who keeps the harbour of the Mill, and since when?"]
    free = pocket.generate(prompts, max_new_tokens=6)
    handle = pocket.network.get_decoder().layers[0].register_forward_hook(lambda *args: None)
    try:
        assert pocket.generate(prompts, max_new_tokens=6) == free
        with pytest.raises(ModelError, match="implementation='transformers'"):
            pocket.generate(prompts, max_new_tokens=6, sampling=Sampling())
    finally:
        handle.remove()
