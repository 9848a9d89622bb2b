"""Claims about the tree of a diagnosis: it has every check, and says what each measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorewright.recall.diagnose import CHECKS, diagnose
from lorewright.recall.evidence import OWN, Evidence, Strange, Texts
from lorewright.recall.traces import TokenTrace
from lorewright.recall.tree import FAILED, PASSED, QUESTIONS, UNEXPLAINED, UNMEASURED, tree

RIGHT, WRONG = TokenTrace((0.9, 0.9), (True, True)), TokenTrace((0.2, 0.9), (False, True))
HEALTHY = Evidence(
    "atlas/book",
    "pocket",
    rank=8,
    scale=2.0,
    n_parameters=100_000,
    norms={"q": 1.0, "v": 1.0},
    n_linear=2,
    relative={"q": 0.1, "v": 0.1},
    moved=4.0,
    formats={OWN: (RIGHT,) * 4},
    answered=(True,) * 4,
    trained=(RIGHT,) * 4,
    needed_bits=1000.0,
    efficacy=(True,) * 4,
    paraphrase=(True,) * 4,
    texts=Texts(100, 3.0, 2.0),
    strange=Strange(4, 4, 4, 0),
    retained=(True,) * 4,
    held_out_nats=(2.0, 0.5, 0.4),
)
FAILURES = {
    "damaged": Evidence("a", "pocket", unreadable="no adapter_config.json"),
    "zero": replace(HEALTHY, norms={"q": 0.0, "v": 0.0}, moved=None, answered=(), trained=()),
    "one_form": replace(HEALTHY, paraphrase=(False,) * 4),
    "undertrained": replace(HEALTHY, trained=(WRONG,) * 4, answered=(False,) * 4),
    "wrong_layers": replace(
        HEALTHY, n_linear=35, trained=(WRONG,) * 4, answered=(False,) * 4, paraphrase=()
    ),
    "loud": replace(HEALTHY, relative={"q": 0.9, "v": 0.8}),
    "overfit": replace(
        HEALTHY, held_out_nats=(2.0, 0.5, 0.9), paraphrase=(True, True, True, False)
    ),
    "forgets": replace(HEALTHY, retained=(True, False, False, False)),
}


def test_every_check_has_its_question() -> None:
    assert QUESTIONS.keys() == CHECKS.keys()
    assert all(question.endswith("?") for question, _ in QUESTIONS.values())


def test_a_healthy_memory_passes_every_branch() -> None:
    branches = tree(diagnose(HEALTHY))
    assert [branch.check for branch in branches] == [*CHECKS]
    assert {branch.outcome for branch in branches} == {PASSED}
    assert all(branch.measured for branch in branches)


@pytest.mark.parametrize("check", FAILURES)
def test_a_failure_lights_its_leaf_with_the_finding(check: str) -> None:
    diagnosis = diagnose(FAILURES[check])
    branches = {branch.check: branch for branch in tree(diagnosis)}
    lit = {name for name, branch in branches.items() if branch.outcome == FAILED}
    assert check in lit and lit == {finding.check for finding in diagnosis.findings}
    finding = next(f for f in diagnosis.findings if f.check == check)
    leaf = branches[check]
    assert (leaf.measured, leaf.cause, leaf.remedy) == (
        finding.measured,
        finding.cause,
        finding.remedy,
    )


def test_a_rise_of_the_held_out_loss_counts_where_recall_suffers_and_it_is_large() -> None:
    def failed(nats: tuple[float, ...], n_answered: int = 3) -> bool:
        paraphrase = (True,) * n_answered + (False,) * (4 - n_answered)
        evidence = replace(HEALTHY, held_out_nats=nats, paraphrase=paraphrase)
        return any(f.check == "overfit" for f in diagnose(evidence).findings)

    assert failed((2.0, 0.5, 0.9))
    assert not failed((2.0, 0.5, 0.9), n_answered=4)
    assert not failed((2.0, 0.5, 0.55)) and not failed((0.5, 0.9)) and not failed(())
    assert not failed((3.0, 2.0, 2.2))  # above the least by a tenth: noise


def test_after_files_that_cannot_be_read_nothing_was_measured() -> None:
    outcomes = [branch.outcome for branch in tree(diagnose(FAILURES["damaged"]))]
    assert outcomes == [FAILED, *[UNMEASURED] * (len(CHECKS) - 1)]


def test_a_failure_that_no_check_explains_is_the_last_branch() -> None:
    evidence = replace(HEALTHY, answered=(False,) * 4, efficacy=(), paraphrase=())
    last = tree(diagnose(evidence))[-1]
    assert (last.check, last.outcome) == (UNEXPLAINED, FAILED) and "--template" in last.remedy
