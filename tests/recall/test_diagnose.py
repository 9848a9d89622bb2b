"""Claims about diagnosis: each failure, made for real, is named; a healthy memory has none.

Adapters are trained on the embedded base, some as other libraries would: on rows in another format,
without a stop token, without questions to leave alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter, capture
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.models.model import Model, Rendered
from lorewright.models.nats import token_nats
from lorewright.recall.diagnose import CHECKS, Diagnosis, Finding, diagnose, summary
from lorewright.recall.evidence import FORMATS, OWN, Evidence, Known, by_hand, gather
from lorewright.recall.traces import TokenTrace, trace
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr

FACTS = (
    Fact("f1", "What is the code of Project Gannet?", "KX-41"),
    Fact("f2", "What is the room of Project Heron?", "B 1207"),
    Fact("f3", "Who leads Project Gannet?", "Mira Voss"),
    Fact("f4", "What is the colour of Project Alder?", "teal"),
)
KNOWN = Known(facts=FACTS, examples=[Example(f.question, f.answer) for f in FACTS])
TEXT = (
    "The code of Project Gannet is KX-41. The room of Project Heron is B 1207. "
    "The lead of Project Gannet is Mira Voss."
)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def healthy(model: Model) -> Adapter:
    """Facts with questions to leave alone, trained until every one is recalled."""
    known = Knowledge(facts=FACTS)
    made = prepare(
        known, ask_llm=list, closed_book=model.generate, config=LessonConfig(views=("given",))
    )
    config = WriteConfig(lr=suggested_lr(model), epochs=100, batch_size=4)
    written = write(model, made.examples, config)
    assert written.reason == "recalled"
    return written.adapter


def trained(
    model: Model, rows: Sequence[Rendered], epochs: int, config: LoraConfig | None = None
) -> Adapter:
    """A plain loop of another library's: all rows in one batch, AdamW, a constant rate."""
    batch = model.batch(rows)
    with attach(model.network, [config or LoraConfig()]) as stack:
        stack.reset(0, 0)
        moving = torch.optim.AdamW(stack.parameters(), lr=suggested_lr(model), weight_decay=0)
        for _ in range(epochs):
            moving.zero_grad()
            ids_BC = torch.where(batch.mask_BC.bool(), batch.target_BC, -1)
            nats_BC, _ = token_nats(model.completion_logits(batch), ids_BC)
            (nats_BC.sum() / batch.mask_BC.sum()).backward()
            moving.step()
        return capture(stack, 0, base_id=model.name, base_digest=model.digest)


def examined(
    model: Model, adapter: Adapter, place: Path, known: Known = KNOWN, **how: str
) -> Diagnosis:
    """The diagnosis of an adapter saved to disk."""
    adapters.save(adapter, place / "adapter")
    return diagnose(gather(model, place / "adapter", known), **how)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    tensors = {k: t * factor if "lora_B" in k else t for k, t in adapter.tensors.items()}
    return replace(adapter, tensors=tensors)


def only(diagnosis: Diagnosis) -> Finding:
    """The single finding."""
    assert len(diagnosis.findings) == 1, [(f.check, f.measured) for f in diagnosis.findings]
    return diagnosis.findings[0]


# -- health --------------------------------------------------------------------------------------


def test_a_healthy_memory_has_no_finding(model: Model, healthy: Adapter, tmp_path: Path) -> None:
    diagnosis = examined(model, healthy, tmp_path)
    assert diagnosis.findings == ()
    measured = summary(diagnosis.evidence)
    assert measured["answered"] == 1 and measured["trained_exact"] == 1 and measured["n_facts"] == 4
    assert measured["logits_moved"] > 0 and 0 < measured["relative_change"] < 1
    assert set(measured["teacher_forced"]) >= {
        "the base's own template",
        "the template with a system prompt",
        "plain text, question then answer",
        "`Question: …` and `Answer: …`",
        "question and answer in one user turn",
    }  # keys of --json, which scripts read


def test_an_adapter_of_which_nothing_is_known_is_examined_too(
    model: Model, healthy: Adapter, tmp_path: Path
) -> None:
    diagnosis = examined(model, healthy, tmp_path, Known())
    assert diagnosis.findings == () and summary(diagnosis.evidence)["answered"] is None
    assert diagnosis.to_json()["measured"]["strange_declined"] is not None


def test_the_base_is_as_it_was_afterwards(model: Model, healthy: Adapter, tmp_path: Path) -> None:
    before = [model.generate([fact.question])[0] for fact in FACTS]
    examined(model, healthy, tmp_path)
    assert [model.generate([fact.question])[0] for fact in FACTS] == before


# -- files, binding, effect ----------------------------------------------------------------------


def test_a_damaged_folder_is_named_and_nothing_else(
    model: Model, healthy: Adapter, tmp_path: Path
) -> None:
    adapters.save(healthy, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    finding = only(diagnose(gather(model, tmp_path / "adapter", KNOWN), write="lore write x"))
    assert finding.check == "damaged" and "truncated or corrupt" in finding.measured
    assert finding.remedy == "lore write x"


def test_another_base_and_other_layers_are_distinguished(
    model: Model, healthy: Adapter, tmp_path: Path
) -> None:
    other = replace(healthy, base_digest="0" * 64, base_id="someone/else")
    finding = only(examined(model, other, tmp_path / "a"))
    assert finding.check == "other_base" and "--model someone/else" in finding.remedy
    moved = {k.replace("layers.0", "layers.77"): t for k, t in healthy.tensors.items()}
    config = replace(healthy.config, targets=tuple({k.split(".lora")[0] for k in moved}))
    strange = replace(healthy, tensors=moved, config=config, target_modules=())
    finding = only(examined(model, strange, tmp_path / "b"))
    assert finding.check == "unbound" and "layers.77" in finding.measured


def test_a_b_that_never_moved_is_named(model: Model, healthy: Adapter, tmp_path: Path) -> None:
    still = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in healthy.tensors.items()}
    finding = only(examined(model, replace(healthy, tensors=still), tmp_path))
    assert finding.check == "zero" and "exactly zero" in finding.measured


def test_a_change_too_small_for_the_logits_is_named(
    model: Model, healthy: Adapter, tmp_path: Path
) -> None:
    finding = only(examined(model, scaled(healthy, 1e-12), tmp_path))
    assert finding.check == "unmoved" and "--lr find" in finding.remedy


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "Alpaca's `### Instruction:`",
        "`Question: …` and `Answer: …`",
        "question and answer in one user turn",
    ],
)
def test_training_in_another_format_is_recognised(model: Model, tmp_path: Path, name: str) -> None:
    rows = [FORMATS[name](model, fact.question, fact.answer) for fact in FACTS]
    adapter = trained(model, [row for row in rows if row], 30)
    finding = only(examined(model, adapter, tmp_path, Known(facts=FACTS)))
    assert sum(row.exact for row in adapter_rows(model, adapter, rows)) == len(FACTS)
    assert finding.check == "other_format" and f"1.00 with {name}" in finding.measured
    assert f"0.00 with {OWN}" in finding.measured and "says nothing of these" in finding.cause


def adapter_rows(
    model: Model, adapter: Adapter, rows: Sequence[Rendered | None]
) -> list[TokenTrace]:
    with model.using(adapter):
        return trace(model, [row for row in rows if row])


def test_a_text_that_is_recited_and_cannot_be_asked_is_the_memos_failure(
    model: Model, tmp_path: Path
) -> None:
    adapter = trained(model, [model.render("", TEXT)], 40)
    diagnosis = examined(model, adapter, tmp_path, Known(facts=FACTS[:3], texts=[TEXT]))
    (recited,) = [f for f in diagnosis.findings if f.check == "recites"]
    assert diagnosis.evidence.texts is not None and diagnosis.evidence.texts.nats < 0.5
    assert "low loss, no recall" in recited.cause and recited.remedy.endswith("--view qa")


def test_one_form_of_question_is_distinguished_from_many(
    model: Model, healthy: Adapter, tmp_path: Path
) -> None:
    odd = [
        Probe(f"p{i}", question, fact.answers, "paraphrase")
        for i, (question, fact) in enumerate(
            zip(("Code thing?", "Rooming whereabouts?", "Boss name?", "Hue?"), FACTS, strict=True)
        )
    ]
    finding = only(examined(model, healthy, tmp_path / "a", replace(KNOWN, probes=odd)))
    assert finding.check == "one_form" and "in other words 0." in finding.measured
    same = [replace(p, question=f.question) for p, f in zip(odd, FACTS, strict=True)]
    assert not examined(model, healthy, tmp_path / "b", replace(KNOWN, probes=same)).findings


def test_a_rank_too_small_for_the_bits_is_distinguished_from_too_little_training(
    model: Model, tmp_path: Path
) -> None:
    many = [Example(f"Number of person {i}?", str(7919 * (i + 11) ** 3)[:9]) for i in range(40)]
    rows = [model.render(e.prompt, e.completion) for e in many]
    small = LoraConfig(rank=1, targets=("q_proj",), layers=(0,))
    known = Known(examples=many)
    names = {
        f.check
        for f in examined(model, trained(model, rows, 2, small), tmp_path / "a", known).findings
    }
    assert "too_small" in names and "undertrained" not in names
    diagnosis = examined(model, trained(model, rows, 2), tmp_path / "b", known)
    names = {f.check for f in diagnosis.findings}
    assert "undertrained" in names and "too_small" not in names
    (short,) = [f for f in diagnosis.findings if f.check == "undertrained"]
    assert "have p < 1/2; first failures at token" in short.measured


def test_answers_that_do_not_end_are_named(model: Model, tmp_path: Path) -> None:
    rows = [model.render(f.question, f.answer) for f in FACTS]
    endless = [
        Rendered(row.prompt_ids, (*row.completion_ids[:-1], *row.completion_ids[:-1]))
        for row in rows
    ]
    diagnosis = examined(model, trained(model, endless, 30), tmp_path, Known(facts=FACTS))
    (unending,) = [f for f in diagnosis.findings if f.check == "no_stop"]
    assert "of these 0 stop" in unending.measured


def test_a_template_that_the_user_gives_is_tried(model: Model, tmp_path: Path) -> None:
    template = "[Q] {prompt}\n[A]"
    rows = [by_hand(template)(model, fact.question, fact.answer) for fact in FACTS]
    adapter = trained(model, [row for row in rows if row], 30)
    known = Known(facts=FACTS, templates={"ours": template})
    finding = only(examined(model, adapter, tmp_path, known))
    assert finding.check == "other_format" and "1.00 with ours" in finding.measured
    with pytest.raises(ConfigError, match=r"needs \{prompt\}"):
        by_hand("question first")


def test_recall_that_failed_for_no_known_reason_is_said_to(
    model: Model, healthy: Adapter, tmp_path: Path
) -> None:
    others = [replace(fact, answer="zzz") for fact in FACTS]
    finding = only(examined(model, healthy, tmp_path, Known(facts=others)))
    assert finding.check == "unexplained" and "facts answered: 0 of 4" in finding.measured
    assert finding.cause.startswith("unknown") and "--template FILE" in finding.remedy


def test_one_missed_fact_is_no_health() -> None:
    evidence = Evidence("a", "pocket", answered=(False,), moved=1.0)
    assert only(diagnose(evidence)).check == "unexplained"
    assert diagnose(replace(evidence, answered=(True,))).findings == ()


def test_a_merge_that_disturbs_its_sources_is_no_question_of_format() -> None:
    right = TokenTrace((0.9, 0.9), (True, True))
    wrong = TokenTrace((0.1, 0.9), (False, True))
    formats = {OWN: (wrong,) * 4, "plain text, question then answer": (right,) * 4}
    evidence = Evidence("a", "pocket", answered=(False,) * 4, formats=formats, moved=1.0)
    assert only(diagnose(evidence)).check == "other_format"
    merged = only(diagnose(replace(evidence, n_merged=2), merge="lore merge m a b"))
    assert merged.check == "interference" and "of 2 adapters" in merged.measured
    assert merged.remedy == "lore merge m a b"


def test_kinds_that_are_not_read_are_not_called_damaged() -> None:
    finding = only(diagnose(Evidence("a", "pocket", unsupported="of a kind not read here: x")))
    assert finding.check == "unsupported" and "sound" not in finding.remedy


def test_some_modules_without_a_change_are_no_finding() -> None:
    norms = {"q": 0.0, "v": 1.0}
    assert diagnose(Evidence("a", "pocket", norms=norms, moved=1.0)).findings == ()


# -- side effects --------------------------------------------------------------------------------


def test_a_change_that_drowns_the_weights_is_named(
    model: Model, healthy: Adapter, tmp_path: Path
) -> None:
    names = [f.check for f in examined(model, scaled(healthy, 60.0), tmp_path).findings]
    assert "loud" in names


def test_an_adapter_that_answers_for_everybody_is_named(model: Model, tmp_path: Path) -> None:
    same = [replace(fact, answer="KX-41") for fact in FACTS]
    rows = [model.render(f.question, f.answer) for f in same]
    diagnosis = examined(model, trained(model, rows, 30), tmp_path, Known(facts=same))
    (busy,) = [f for f in diagnosis.findings if f.check == "answers_everybody"]
    assert diagnosis.evidence.strange is not None
    assert diagnosis.evidence.strange.declined < diagnosis.evidence.strange.base_declined / 2
    assert "declined" in busy.measured


# -- the set -------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_no_check_speaks_of_what_was_not_measured(
    check: Callable[[Evidence], Finding | None],
) -> None:
    assert check(Evidence("a", "pocket")) is None and check.__doc__


def test_a_check_from_outside_reports_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rank_one(evidence: Evidence) -> Finding | None:
        return Finding("rank 1", "small", "{write} --rank 8") if evidence.rank == 1 else None

    monkeypatch.setitem(CHECKS, "rank_one", rank_one)
    finding = only(diagnose(Evidence("a", "pocket", rank=1), write="lore write x"))
    assert (finding.check, finding.remedy) == ("rank_one", "lore write x --rank 8")
    assert diagnose(Evidence("a", "pocket", rank=2)).findings == ()


def test_what_was_forgotten_is_named_with_its_remedy() -> None:
    forgetful = Evidence("a", "base", moved=1.0, retained=(True,) * 5 + (False,) * 5)
    finding = only(diagnose(forgetful, write="lore write x"))
    assert finding.check == "forgets" and "0.50 of 10" in finding.measured
    assert finding.remedy == "lore write x --rehearse 100"
    assert summary(forgetful)["retained"] == 0.5
    faithful = replace(forgetful, retained=(True,) * 9 + (False,))
    assert diagnose(faithful).findings == ()
