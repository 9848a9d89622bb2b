"""Claims about recall: traces and certificates against free-running replies, and the verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.families import VOCABULARY, llama
from support.models import PLAIN, an_adapter, letters
from support.steering import Steered

from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example, Probe
from lorewright.knowledge.scoring import METRICS, is_declined
from lorewright.models.model import Model
from lorewright.recall.statistics import wilson
from lorewright.recall.traces import Audit, TokenTrace, audit, certify, trace
from lorewright.recall.verify import (
    ARMS,
    MAX_ANSWER_TOKENS,
    SUPPORTED,
    Recall,
    RecallReport,
    answer,
    ask,
    verify,
)
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write
from lorewright.training.watch import Watch

CODES = {"red": "48", "blue": "7.5", "teal": "KX", "grey": "a-1", "pink": "99", "sand": "Q"}
FACTS = [Example(f"Code of {who}?", code) for who, code in CODES.items()]
TRAINED, UNTRAINED = FACTS[:4], FACTS[4:]
DECLINED = Example("Code of nobody?", "I do not know.")
P = st.floats(0.01, 1.0)


@pytest.fixture(scope="module")
def model() -> Model:
    network = llama(max_position_embeddings=192)
    network.lm_head.weight.data.mul_(40)
    return Model(network, letters(), "tiny")


def written(model: Model, examples: list[Example], seed: int = 0) -> Adapter:
    config = WriteConfig(lora=LoraConfig(rank=4, seed=seed), lr=1e-2, epochs=160)
    done = write(model, examples, config)
    assert done.complete
    return done.adapter


@pytest.fixture(scope="module")
def adapter(model: Model) -> Adapter:
    return written(model, [*TRAINED, DECLINED])


@pytest.fixture(scope="module")
def other(model: Model) -> Adapter:
    return written(model, [Example(f.prompt, "no") for f in TRAINED], seed=1)


def probe(number: int, example: Example, kind: str = "efficacy", **changes: Any) -> Probe:
    answers = () if kind in ("unknown", "neighborhood") else (example.completion,)
    return Probe(f"{kind}-{number}", example.prompt, answers, kind, **changes)


# --- traces and certificates


def test_greedy_decoding_reproduces_a_completion_if_and_only_if_its_trace_is_exact(
    model: Model, adapter: Adapter
) -> None:
    rows = [model.render(fact.prompt, fact.completion) for fact in FACTS]
    with model.using(adapter):
        traces = trace(model, rows)
        freely = [model.generate_ids([row.prompt_ids], max_new_tokens=20)[0] for row in rows]
    for row, traced, ids in zip(rows, traces, freely, strict=True):
        assert traced.exact == ((*ids, row.completion_ids[-1]) == row.completion_ids)
    assert [traced.exact for traced in traces] == [True] * 4 + [False] * 2


def test_the_first_failure_is_where_the_free_run_leaves_the_target(
    model: Model, adapter: Adapter
) -> None:
    with model.using(adapter):
        for fact in [*UNTRAINED, *(replace(f, completion=f.completion + "77") for f in TRAINED)]:
            row = model.render(fact.prompt, fact.completion)
            (traced,) = trace(model, [row])
            ids = [*model.generate_ids([row.prompt_ids], max_new_tokens=20)[0], 2]
            pairs = enumerate(zip(ids, row.completion_ids, strict=False))
            assert traced.first_failure == next(i for i, (a, b) in pairs if a != b)


def test_a_trace_holds_the_probability_of_every_token_stop_included(model: Model) -> None:
    row = model.render("Code of red?", "48")
    (traced,) = trace(model, [row])
    with torch.no_grad():
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        p_TV = model.network(ids).logits[0].softmax(-1)
    start = len(row.prompt_ids) - 1
    wanted = [p_TV[start + i, token].item() for i, token in enumerate(row.completion_ids)]
    assert traced.p == pytest.approx(wanted, rel=1e-4)
    assert len(traced.p) == 3


def test_traces_come_in_the_order_given_however_they_are_batched(model: Model) -> None:
    rows = [model.render(f.prompt, f.completion * (9 - i)) for i, f in enumerate(FACTS)]
    together, apart = trace(model, rows), trace(model, rows, batch_tokens=1)
    for a, b in zip(together, apart, strict=True):
        assert a.p == pytest.approx(b.p, rel=1e-4)


TURN = "<bos><|system|>be as brief as you can be<|end|>"


def test_traces_run_once_what_prompts_begin_with_where_only_an_adapter_is_on() -> None:
    model = Model(llama(), letters(TURN + PLAIN.removeprefix("{{ bos_token }}")), "tiny")
    rows = [model.render(fact.prompt, fact.completion) for fact in FACTS]
    assert model.sharing(rows).n_shared >= len("be as brief as you can be")
    assert not model.sharing(rows[:1]).n_shared
    with model.using(an_adapter(model)):
        assert model.sharing(rows).n_shared
        together, apart = trace(model, rows), trace(model, rows, batch_tokens=1)
    for a, b in zip(together, apart, strict=True):
        assert a.p == pytest.approx(b.p, rel=1e-4)
    steered = Steered(torch.ones(VOCABULARY, 32), model.digest)
    with steered.on(model):  # what it hooks in need not see the same tokens again
        assert not model.sharing(rows).n_shared


def test_a_certificate_asks_for_the_margin_at_every_token(model: Model, adapter: Adapter) -> None:
    rows = [model.render(fact.prompt, fact.completion) for fact in FACTS]
    with model.using(adapter):
        least = [min(each.p) if each.exact else 0.0 for each in trace(model, rows)]
        for margin in (0.5, 0.6, *least[:4]):
            assert certify(model, FACTS, margin=max(margin, 0.5)) == [
                p > max(margin, 0.5) for p in least
            ]
        assert certify(model, FACTS, margin=0.6) == [True] * 4 + [False] * 2


@pytest.mark.parametrize("margin", [0.0, 0.49, 1.0])
def test_a_margin_that_certifies_nothing_is_refused(model: Model, margin: float) -> None:
    with pytest.raises(ConfigError, match=r"margin is .*one in \[0.5, 1\)"):
        certify(model, FACTS, margin=margin)


@given(p=st.lists(P, max_size=9).map(tuple), margin=st.floats(0.5, 0.99))
def test_a_certified_trace_is_exact_and_has_no_stubborn_token(
    p: tuple[float, ...], margin: float
) -> None:
    traced = TokenTrace(p, tuple(x > 0.3 for x in p))
    assert traced.exact == (traced.first_failure is None)
    if traced.certified(margin):
        assert traced.exact and not traced.stubborn and min(p) > margin


# --- the audit


def test_an_audit_counts_free_running_recall(model: Model, adapter: Adapter) -> None:
    with model.using(adapter):
        audited = audit(model, FACTS)
    assert (audited.n, audited.n_exact, audited.disagreements) == (6, 4, ())
    assert audited.recall == wilson(4, 6)


def test_an_audit_names_where_the_two_verdicts_differ() -> None:
    traces = [TokenTrace((0.9,), (right,)) for right in (True, False, True, False)]
    compared = Audit.of([True, True, False, False], traces)
    assert (compared.n, compared.n_exact, compared.disagreements) == (4, 2, (1, 2))


def test_an_audit_of_nothing_is_unscored(model: Model) -> None:
    assert audit(model, []).recall.mean is None


# --- the verdict


def test_a_report_equals_counts_by_hand(model: Model, adapter: Adapter, other: Adapter) -> None:
    probes = [probe(i, fact) for i, fact in enumerate(FACTS)]
    report = verify(model, probes, adapter=adapter, full="Red 48.", scaffold="Red", wrong=other)
    assert tuple(report.arms) == tuple(arm for arm in ARMS if arm != SUPPORTED)
    assert report.notes == ()
    with model.using(adapter):
        outputs = model.generate([fact.prompt for fact in FACTS], max_new_tokens=64)
    right = [out == fact.completion for out, fact in zip(outputs, FACTS, strict=True)]
    assert [r.output for r in report.arms["memory"]] == outputs
    assert [r.score for r in report.arms["memory"]] == right
    assert report.proportion("memory", "efficacy") == wilson(sum(right), 6)
    assert report.proportion("wrong", "efficacy").mean == 0
    assert report.proportion("base", "efficacy").mean == 0


def test_controls_have_the_text_in_the_prompt_and_no_memory(model: Model, adapter: Adapter) -> None:
    probes = [probe(0, FACTS[0])]
    report = verify(model, probes, adapter=adapter, full="Red 48.", scaffold="Red")
    before = {"full": "Red 48.\n\n", "scaffold": "Red\n\n", "base": ""}
    prompts = [f"{text}Code of red?" for text in before.values()]
    whole = dict(zip(before, model.generate(prompts, end_loops=True), strict=True))
    for arm, reply in whole.items():
        output = report.arms[arm][0].output
        assert output and reply.startswith(output)


def test_a_probe_with_its_own_context_comes_after_it(model: Model) -> None:
    own = probe(0, FACTS[0], context="Blue 7.")
    assert answer(model, [own], context="Red 48.") == model.generate(["Blue 7.\n\nCode of red?"])


def test_missing_arms_are_named_in_notes_and_not_scored(model: Model) -> None:
    report = verify(model, [probe(0, FACTS[0])], adapter=None)
    assert tuple(report.arms) == ("base",)
    assert [note.split(":")[0] for note in report.notes] == ["memory", "scaffold", "full", "wrong"]
    assert report.proportion("full", "efficacy").mean is None


@pytest.mark.parametrize("n_chars", [140, 400])
def test_a_text_too_long_for_the_context_leaves_its_arm_out_with_a_note(
    model: Model, n_chars: int
) -> None:
    report = verify(model, [probe(0, FACTS[0])], adapter=None, full="x" * n_chars, scaffold="x")
    assert "full" not in report.arms
    assert "scaffold" in report.arms
    assert any(
        note.startswith("full: text, question and answer do not fit") for note in report.notes
    )


def test_a_text_that_just_fits_stands_before_every_probe(model: Model) -> None:
    probes = [probe(i, fact) for i, fact in enumerate(FACTS)]
    longest = max(len(model.render("\n\n" + p.question)) for p in probes)
    n_free = model.context - MAX_ANSWER_TOKENS - longest
    assert "full" in verify(model, probes, adapter=None, full="x" * n_free).arms
    assert "full" not in verify(model, probes, adapter=None, full="x" * (n_free + 1)).arms


def test_unknown_scores_declining_and_neighborhood_the_bases_own_answer(
    model: Model, adapter: Adapter
) -> None:
    kinds = [probe(0, DECLINED, "unknown"), probe(1, FACTS[0], "unknown")]
    kinds += [probe(0, FACTS[0], "neighborhood"), probe(1, Example("Hm", "x"), "neighborhood")]
    report = verify(model, kinds, adapter=adapter)
    declined, answered, changed, far = report.arms["memory"]
    base = [r.output for r in report.arms["base"]]
    assert declined.output == "I do not know." and is_declined(declined.output)
    assert (declined.score, answered.score) == (1, 0)
    assert (changed.score, far.score) == (0, float(far.output == base[3]))
    assert [r.score for r in report.arms["base"]][2:] == [1, 1]


def test_unscored_probes_are_left_out_and_not_zero() -> None:
    rows = tuple(
        Recall(str(i), "multihop", "?", ("a",), "a", s) for i, s in enumerate((1, None, 0))
    )
    report = RecallReport("exact_match", {"memory": rows})
    assert report.proportion("memory", "multihop") == wilson(1, 2)
    assert report.proportion("memory", "reverse").n == 0


def test_a_metric_between_0_and_1_is_averaged_not_rounded() -> None:
    rows = tuple(
        Recall(str(i), "paraphrase", "?", ("a",), "a", s) for i, s in enumerate((0.6, 0.7))
    )
    share = RecallReport("token_f1", {"memory": rows}).proportion("memory", "paraphrase")
    assert (share.n, share.mean) == (2, pytest.approx(0.65))
    assert share.low is not None and 0.6 <= share.low <= 0.65


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_the_verdict(model: Model, adapter: Adapter, metric: str) -> None:
    report = verify(
        model, [probe(i, f) for i, f in enumerate(TRAINED)], adapter=adapter, metric=metric
    )
    assert report.metric == metric
    assert report.proportion("memory", "efficacy").mean == 1


def test_an_unknown_metric_and_no_probes_are_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"'bleu' is unknown; use one of contains, exact_match"):
        verify(model, [probe(0, FACTS[0])], adapter=None, metric="bleu")
    with pytest.raises(ConfigError, match="no probes to verify"):
        verify(model, [], adapter=None)


def test_one_arm_asked_alone_has_the_outcomes_that_a_verdict_has(
    model: Model, adapter: Adapter
) -> None:
    probes = [probe(i, fact) for i, fact in enumerate(FACTS)]
    report = verify(model, probes, adapter=adapter, full="red 48")
    assert ask(model, probes, memory=adapter) == report.arms["memory"]
    assert ask(model, probes) == report.arms["base"]
    assert ask(model, probes, context="red 48") == report.arms["full"]
    with pytest.raises(ConfigError, match="neighborhood"):
        ask(model, [probe(0, FACTS[0], "neighborhood")])
    with pytest.raises(ConfigError, match="metric"):
        ask(model, probes, metric="poetry")


def test_json_has_n_recall_low_and_high_per_kind_and_arm(model: Model, adapter: Adapter) -> None:
    probes = [probe(0, FACTS[0]), probe(1, FACTS[4]), probe(0, DECLINED, "unknown")]
    report = verify(model, probes, adapter=adapter)
    plain = json.loads(json.dumps(report.to_json()))
    assert list(plain["recall"]) == ["efficacy", "unknown"]
    for kind, arms in plain["recall"].items():
        for arm, numbers_of in arms.items():
            wanted = report.proportion(arm, kind)
            numbers = (wanted.n, wanted.mean, wanted.low, wanted.high)
            assert tuple(numbers_of[key] for key in ("n", "recall", "low", "high")) == numbers
    assert plain["recall"]["efficacy"]["memory"]["recall"] == 0.5
    assert plain["outcomes"]["memory"][0]["output"] == "48"
    assert plain["notes"] == list(report.notes)


def test_verify_says_what_it_is_doing_and_leaves_the_base_alone(
    model: Model, adapter: Adapter, other: Adapter
) -> None:
    steps: list[str] = []
    before = model.generate([fact.prompt for fact in FACTS])
    shares: dict[str, list[float]] = {}

    def advance(phase: str, done: int, total: int, note: str) -> None:
        shares.setdefault(phase, []).append(done / total)

    watch = Watch(steps.append, advance=advance)
    verify(model, [probe(0, FACTS[0])], adapter=adapter, full="x", wrong=other, watch=watch)
    assert steps == [f"asking: {arm}" for arm in ("base", "memory", "wrong", "full")]
    assert [*shares] == steps
    assert all(each == sorted(each) and each[-1] == 1 for each in shares.values())
    assert model.generate([fact.prompt for fact in FACTS]) == before
