"""Claims about the exact-memory benchmarks: sound texts, matched members, summaries of records.

One small sweep of real writes on the embedded base serves most tests; the numbers of a sweep are
checked on rows made by hand.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorewright.bench import exact, linear_rule, longcontext, phonebook, summary, task
from lorewright.bench.passages import PROMPT, Passage, passage
from lorewright.bench.scale import Step
from lorewright.errors import ConfigError, DataError, TargetsNotFound, WrongBase
from lorewright.knowledge.data import Example
from lorewright.models.model import Model
from lorewright.reports.tables import Table

SMALL = longcontext.LongContext(
    ranks=(1, 2),
    lengths=(6, 12),
    noise=(0, 100),
    documents=2,
    placements=("down_proj@middle", "mlp@4"),
    methods=("sft", "threshold"),
    failing_ranks=(1, 2),
    sequences=4,
    paired=2,
    compared=10,
    steps=20,
    compared_steps=20,
)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("pocket")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a small sweep of all parts, and its summary."""
    out = tmp_path_factory.mktemp("bench") / "lc"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "LAW_DRAWS", 10)
        return out, task.run(longcontext.TASK, SMALL, out)


# --- texts


def own_tokens(model: Model, text: Passage) -> tuple[int, ...]:
    return model.render(text.example.prompt, text.example.completion).completion_ids[:-1]


@pytest.mark.parametrize("noise", [0, 30, 100])
def test_passages_have_exactly_the_tokens_that_were_drawn(model: Model, noise: int) -> None:
    for n_tokens in (1, 7, 60):
        text = passage(model, n_tokens, noise, "one")
        assert len(text.ids) == n_tokens and own_tokens(model, text) == text.ids
        assert text.n_random == round(n_tokens * noise / 100)
        assert text.example.prompt == PROMPT


def test_noise_replaces_its_share_of_the_natural_tokens(model: Model) -> None:
    natural = passage(model, 60, 0, "one", text=TEXT)
    assert natural.example.completion in " ".join(Path(TEXT).read_text().split())
    words = set(Path(TEXT).read_text().split())
    texts = [passage(model, 60, noise, "one", text=TEXT).example for noise in (0, 50, 100)]
    stored = [sum(word in words for word in text.completion.split()) for text in texts]
    assert stored[0] > stored[1] > stored[2]


TEXT = str(Path(__file__).parents[2] / "examples" / "handbook.md")


def test_passages_are_the_same_by_name_and_others_by_another(model: Model) -> None:
    first, again, other = (passage(model, 40, 50, name) for name in ("a", "a", "b"))
    assert first == again and first.digest == again.digest
    assert first.ids != other.ids and first.digest != other.digest


def test_random_tokens_are_only_such_as_the_base_can_say(model: Model) -> None:
    head_VD = model.network.get_output_embeddings().weight.detach()
    text = passage(model, 80, 100, "sayable")
    best_V = (head_VD @ head_VD.T).argmax(0)
    assert all(int(best_V[i]) == i for i in text.ids)
    # The base has tokens that others cover, so that the claim above is not empty.
    assert (best_V != best_V.new_tensor(range(len(best_V)))).any()


def test_texts_that_cannot_be_had_are_refused(model: Model, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Only a few words.")
    with pytest.raises(DataError, match="give a longer file"):
        passage(model, 50, 0, "one", text=short)
    with pytest.raises(DataError, match="from 0 to 100"):
        passage(model, 10, 101, "one")


def test_books_have_unique_keys_and_numbers_of_the_asked_tokens(model: Model) -> None:
    book = phonebook.book(model, 300, seed=1)
    assert len({e.prompt for e in book}) == len({e.completion for e in book}) == len(book)
    assert all(len(e.completion) == 10 and e.completion.isdigit() for e in book)
    assert all(e.completion[0] != "0" and e.prompt.endswith(":") for e in book)
    n_tokens = sum(len(model.render(e.prompt, e.completion).completion_ids) - 1 for e in book)
    assert abs(n_tokens - 300) <= 6
    assert {e.prompt for e in book}.isdisjoint(e.prompt for e in phonebook.book(model, 300, 2)) or (
        book != phonebook.book(model, 300, 2)
    )


def test_pairs_follow_the_rule_and_unseen_ones_were_not_trained() -> None:
    trained, unseen = linear_rule.examples(200, seed=0)
    assert len({e.prompt for e in [*trained, *unseen]}) == 400
    for e in [*trained, *unseen]:
        x, y = map(int, e.prompt.removeprefix("f(").removesuffix(") =").split(", "))
        assert int(e.completion) == 3 * x + 5 * y + 7
    assert linear_rule.examples(200, seed=1)[0] != trained


# --- members of a stack


JOB = {
    "placement": "down_proj@middle",
    "lr": 0.0,
    "epochs": 40,
    "batch": 2,
    "margin": 0.6,
    "repeats": 1,
}
FACTS = [Example("Ann Bo:", "4821"), Example("Cy Do:", "7390"), Example("Ed Fy:", "1157")]


def test_methods_share_budget_rate_and_first_weights(model: Model) -> None:
    members = exact.settings((4,), tuple(exact.METHODS), (3,))
    configs = [exact.config_of(model, JOB, member) for member in members]
    plain = [replace(config, objective="sft", order="shuffle") for config in configs]
    assert len(set(plain)) == 1
    assert len(set(configs)) == len(exact.METHODS)


def test_rows_say_what_came_back_and_what_is_general(model: Model) -> None:
    job = JOB | {"epochs": 100}
    members = [(setting, FACTS) for setting in exact.settings((1, 8), ("sft",), (0,))]
    low, high = exact.rows_of(model, job, members, unseen=[Example("Gus Ha:", "2222")])
    assert high["exact"] == high["n"] == 3 and high["token_accuracy"] == 1.0
    assert high["first_failure"] == [None] * 3 and high["unseen"]["exact"] == 0
    assert high["loss"] < 0.2 < low["loss_init"] == high["loss_init"]
    assert high["n_parameters"] == 8 * low["n_parameters"] == 8 * (192 + 384)
    assert high["n_answer_tokens"] == sum(
        len(model.render(e.prompt, e.completion).completion_ids) - 1 for e in FACTS
    )
    assert high["steps"] < 200 and high["reason"] == "recalled"


def test_texts_decoded_in_one_batch_are_as_decoded_alone(model: Model) -> None:
    texts = [passage(model, 8, 100, name).example for name in ("a", "b")]
    settings = exact.settings((4,), ("sft",), (0, 1))
    job = JOB | {"epochs": 4, "repeats": 5, "batch": 1}
    both = exact.rows_of(model, job, [(s, [t]) for s, t in zip(settings, texts, strict=True)])
    alone = [
        exact.rows_of(model, job, [(setting, [text])])[0]
        for setting, text in zip(settings, texts, strict=True)
    ]
    keys = ("first_failure", "exact", "n_stubborn", "n_answer_tokens", "steps")
    for a, b in zip(both, alone, strict=True):
        assert {key: a[key] for key in keys} == {key: b[key] for key in keys}
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)


def test_losses_leave_the_stop_token_out() -> None:
    from lorewright.recall.traces import TokenTrace

    traces = [TokenTrace((0.5, 0.25, 1e-9), (True, True, False))]
    assert exact.nats(traces) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_placements_name_targets_and_layers(model: Model) -> None:
    assert exact.placement(model, "down_proj@middle") == (("down_proj",), (3,))
    assert exact.placement(model, "q_proj+v_proj@0") == (("q_proj", "v_proj"), (0,))
    assert exact.placement(model, "mlp@last") == (("mlp",), (4,))
    assert exact.placement(model, "mlp") == (("mlp",), None)
    with pytest.raises(ConfigError, match="no TARGET@LAYER"):
        exact.placement(model, "mlp@top")
    with pytest.raises(ConfigError, match="0 to 4"):
        exact.placement(model, "mlp@17")
    with pytest.raises(TargetsNotFound):
        exact.placement(model, "dense@0")
    with pytest.raises(ConfigError, match="use one of sft, threshold"):
        exact.settings((1,), ("dpo",), (0,))


def test_a_sweep_is_bound_to_the_base_it_began_with(model: Model) -> None:
    with pytest.raises(WrongBase, match="begin a new one"):
        exact.base_model("pocket", "0" * 64)
    assert exact.base_model("pocket", model.digest).digest == model.digest


# --- sweeps and summaries


def test_a_sweep_covers_every_cell_and_its_records_are_enough(
    swept: tuple[Path, dict[str, Any]], model: Model
) -> None:
    out, result = swept
    jobs = longcontext.jobs(SMALL, model.digest)
    assert (
        result["n_jobs"] == len(jobs) == len([*(out / "records").glob("*.json")]) == 8 + 1 + 2 + 4
    )
    cells = result["law"]["100"]["cells"]
    assert {(c["rank"], c["n_answer_tokens"]) for c in cells} == {
        (r, n) for r in (1, 2) for n in (6, 12)
    }
    assert len(cells) == 8 and len({cell["group"] for cell in cells}) == 4
    assert all(0 < cell["loss_drop"] <= cell["loss_init"] for cell in cells)
    assert result["stubborn"]["n_sequences"] == 4
    assert {row["placement"] for row in result["placement"]} == set(SMALL.placements)
    assert {row["method"] for row in result["methods"]} == set(SMALL.methods)
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(result))


def test_a_sweep_that_is_there_is_not_done_again(
    swept: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = swept
    monkeypatch.setattr(summary, "LAW_DRAWS", 10)
    steps: list[Step] = []
    again = task.run(longcontext.TASK, SMALL, out, progress=task.Progress(steps.append))
    assert [(step.n_done, step.n_stored) for step in steps] == [(result["n_jobs"],) * 2]
    assert {k: v for k, v in again.items() if k != "command"} == {
        k: v for k, v in result.items() if k != "command"
    }


def test_a_folder_of_another_benchmark_is_refused(
    swept: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="holds a sweep of 'longcontext'"):
        task.run(phonebook.TASK, phonebook.PhoneBook(), swept[0])
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="give an empty folder"):
        task.run(phonebook.TASK, phonebook.PhoneBook(), tmp_path)


def test_tables_and_figures_are_made_of_the_summary_alone(
    swept: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    stored_summary = json.loads((swept[0] / "summary.json").read_text())
    titles = [sheet.title for sheet in longcontext.TASK.tables(stored_summary)]
    assert titles[0] == "The law" and any(title.startswith("Placements") for title in titles)
    for figure in longcontext.TASK.figures(stored_summary):
        figure.draw(tmp_path / f"{figure.name}.svg", dark=True)
    names = {path.stem for path in tmp_path.iterdir()}
    assert {"law-0", "plane-100", "predicted", "heat", "capacity", "positions-0"} < names
    assert {"failures", "loss-drop", "placement"} < names


@pytest.mark.parametrize("module", [phonebook, linear_rule])
def test_small_sweeps_of_the_other_benchmarks_have_paired_tables(
    module: Any, tmp_path: Path
) -> None:
    small: dict[str, Any] = {
        "ranks": (1, 2),
        "methods": ("sft", "curriculum"),
        "epochs": 2,
        "seeds": 2,
    }
    if module is phonebook:
        config: Any = phonebook.PhoneBook(sizes=(40,), **small)
    else:
        config = linear_rule.LinearRule(pairs=6, **small)
    result = task.run(module.TASK, config, tmp_path / "out")
    (sheet,) = module.TASK.tables(result)
    assert isinstance(sheet, Table) and len(sheet.rows) == 4 * 3
    assert sheet.head == ("metric", "rank", "n", "sft", "curriculum")
    assert all("(+" in row[-1] or "(-" in row[-1] for row in sheet.rows)
    for figure in module.TASK.figures(result):
        figure.draw(tmp_path / f"{figure.name}.png")


def row(rank: int, method: str, seed: int, exact_share: float, **more: Any) -> dict[str, Any]:
    base = {"rank": rank, "method": method, "seed": seed, "loss": 1.0, "loss_init": 9.0}
    return {**base, "exact": exact_share, "n": 1, **more}


def test_differences_are_paired_over_units_and_pooled_over_ranks() -> None:
    rows = [
        row(r, m, s, s / 10 + (m == "window") * 0.2 * r)
        for r in (1, 2)
        for m in ("sft", "window")
        for s in range(6)
    ]
    result = summary.compared(rows, {"exact": lambda r: r["exact"]})
    by = {(e["rank"], e["method"]): e for e in result}
    assert by[1, "window"]["difference"]["mean"] == pytest.approx(0.2)
    # Units differ much and differences not at all, which only pairing can see.
    assert by[1, "window"]["difference"]["low"] == pytest.approx(0.2)
    assert by[1, "window"]["high"] - by[1, "window"]["low"] > 0.1
    assert by[None, "window"]["difference"]["mean"] == pytest.approx(0.3)
    assert by[1, "sft"]["difference"] is None


def test_what_diverged_is_counted_and_not_zero() -> None:
    rows = [row(1, "sft", s, 1.0) for s in range(3)] + [row(1, "window", s, 1.0) for s in range(2)]
    lost = {"rank": 1, "method": "window", "seed": 2, "why": "the loss is nan"}
    (_, result) = summary.compared([*rows, lost], {"exact": lambda r: r["exact"]})
    assert (result["n"], result["mean"], result["n_diverged"]) == (2, 1.0, 1)
    assert result["difference"]["n"] == 2


def test_failures_count_sequences_and_correlate_ranks() -> None:
    def sequence(stubborn: int | None, failure: int | None) -> dict[str, Any]:
        return row(1, "sft", 0, 0, first_stubborn=[stubborn], first_failure=[failure], noise=0)

    rows = [sequence(i, i + i % 3) for i in range(30)] + [sequence(None, None), sequence(4, None)]
    result = summary.failures(rows)
    assert (result["n_sequences"], result["n_failed"], result["n_same"]) == (32, 30, 10)
    rho = result["spearman"]
    assert rho["n"] == 30 and 0.9 < rho["low"] <= rho["mean"] <= rho["high"] <= 1
    assert summary.failures(rows[:2])["spearman"]["mean"] is None


def test_capacity_is_the_most_of_any_length_and_says_if_longer_may_hold_more() -> None:
    rows = [
        {**row(2, "sft", s, 0), "n_answer_tokens": n, "loss": 9.0 - drop, "n_parameters": 100}
        for n, drop in ((10, 8.0), (100, 4.0), (200, 1.0))
        for s in range(2)
    ]
    (result,) = summary.capacities(rows)
    assert result["bits"]["mean"] == pytest.approx(400 / math.log(2))
    assert result["bits_per_parameter"]["mean"] == pytest.approx(4 / math.log(2))
    assert (result["at_tokens"], result["at_the_longest"], result["tokens_recalled"]) == (
        100,
        False,
        0,
    )


def test_settings_that_cannot_be_run_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="part 'rule' is unknown"):
        longcontext.LongContext(parts=("rule",))
    with pytest.raises(ConfigError, match="ranks is empty"):
        longcontext.LongContext(ranks=())
    with pytest.raises(ConfigError, match="method 'magic'"):
        phonebook.PhoneBook(methods=("magic",))
    with pytest.raises(ConfigError, match="there are 5000"):
        linear_rule.LinearRule(pairs=6000)
    config = longcontext.LongContext()
    assert len(longcontext.jobs(longcontext.quick(config), "")) < len(longcontext.jobs(config, ""))
