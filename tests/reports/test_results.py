"""Claims about results as tables: every number with its n, dashes for what was not run."""

from __future__ import annotations

from typing import Any

import pytest
from support.records import card, merge, outcomes, record, verdict

from lorewright.adapters.targets import Coverage, Site
from lorewright.errors import DataError
from lorewright.recall.verify import ARMS, SUPPORTED
from lorewright.reports.results import (
    contrast_table,
    coverage_table,
    memories_table,
    merged_table,
    recall_table,
    trials_table,
)
from lorewright.reports.tables import NOT_RUN


def test_a_verdict_has_a_row_per_kind_and_a_column_per_arm() -> None:
    table = recall_table(verdict())
    assert (
        table.head == ("probes", "n", *(arm for arm in ARMS if arm != SUPPORTED))
        and "Recall of handbook" in table.title
    )
    (row,) = [row for row in table.rows if row[0] == "paraphrase"]
    assert row[1:4] == ("96", "0.94 [0.87, 0.97]", "0.00 [0.00, 0.04]")
    assert row[-1] == "0.97 [0.91, 0.99]" and table.bold == (table.rows.index(row),)


def test_an_arm_that_was_not_run_is_a_dash_with_the_reason_below() -> None:
    table = recall_table(verdict())
    assert table.rows[0].count(NOT_RUN) == 2  # scaffold and wrong
    assert table.notes == ("wrong: there is no other memory in the folder.",)


def test_unscored_probes_are_counted_and_are_not_zero() -> None:
    table = recall_table(
        verdict(
            memory=outcomes("paraphrase", 10, 10, n_unscored=2), base=outcomes("paraphrase", 0, 12)
        )
    )
    assert table.rows[0][1:3] == ("10–12", "1.00 [0.72, 1.00]")
    assert "memory: 2 of 12 paraphrase probes unscored." in table.notes


def test_a_kind_without_any_score_is_unscored() -> None:
    table = recall_table(verdict(memory=outcomes("paraphrase", 0, 0, n_unscored=3)))
    assert "unscored" in table.rows[0]


def test_a_report_without_arms_has_notes_only() -> None:
    table = recall_table({"metric": "exact_match", "recall": {}, "notes": ["why"]})
    assert table.rows == () and table.notes == ("why",)


def test_memories_stand_beside_their_base() -> None:
    bare = {**card("bare"), "report": {"recall": {}}, "reason": "budget"}
    table = memories_table([card("handbook"), bare], n_more=3)
    full, empty = table.rows
    assert full[:5] == ("handbook", "8", "96", "0.94 [0.87, 0.97]", "0.00 [0.00, 0.04]")
    assert empty.count(NOT_RUN) == 3
    assert table.notes[0] == "bare: training ended by budget."
    assert table.notes[1] == "2 of 5 memories; --limit 0 lists all."


def test_a_merge_shows_what_was_lost_and_why_a_trial_was_none() -> None:
    assert merged_table(merge()).rows[0][3:] == (
        "1.00 [0.68, 1.00]",
        "0.88 [0.53, 0.98]",
        "0.12 [-0.04, 0.30]",
        "0.00 [0.00, 0.32]",
    )
    table = trials_table(merge())
    assert table.head == ("method", "rank", "seconds", "a (8)", "b (8)")
    assert table.rows[1][3:] == (NOT_RUN, NOT_RUN)
    assert table.notes == ("svd: ranks differ; give --rank.",)


def test_targets_are_counted_and_what_is_skipped_says_why() -> None:
    sites = tuple(Site(f"layers.{i}.q_proj", i, "q_proj", 4, 4) for i in range(3))
    table = coverage_table(Coverage(sites, 4, {"lm_head": "the head"}))
    assert table.subtitle == "3 of 4 linear layers"
    assert table.rows[0][:2] == ("q_proj", "3") and table.rows[1] == ("skipped", "1", "the head")


def test_the_demonstration_has_both_parts_and_says_below_what_each_row_is() -> None:
    table = contrast_table(record())
    assert table.title == "One handbook, two ways" and "108 probes" in table.subtitle
    names = table.column(0)
    assert names[:4] == [row["name"] for row in record()["rows"]] and table.sections == (3,)
    assert ("write: questions and answers", "108", "0.94 [0.87, 0.97]", "0.023") in table.rows
    assert ("nothing scored", "0", "unscored", NOT_RUN) in table.rows
    assert "stable: what stable means." in table.notes and table.notes[-1] == "$ lore demo"


def test_what_was_declined_and_retained_stands_beside_recall_where_it_was_asked() -> None:
    plain = record()
    rows = [{**row, "declined": row, "retained": None} for row in plain["rows"]]
    rows[0]["retained"] = {**rows[0], "n": 40, "recall": 0.75}
    table = contrast_table({**plain, "rows": rows})
    assert table.head == ("", "n", "recall", "declined", "retained", "loss")
    assert table.rows[0][3:5] == ("0.01", "0.75") and table.rows[1][4] == NOT_RUN
    assert table.rows[-1][3:5] == (NOT_RUN, NOT_RUN)
    assert any(note.startswith("retained: of 40 ") for note in table.notes)


@pytest.mark.parametrize(
    "broken", [{}, {**record(), "rows": [{"name": "x"}]}, {**record(), "seconds": None}]
)
def test_a_record_of_another_shape_is_refused_in_a_sentence(broken: dict[str, Any]) -> None:
    for table in (contrast_table, merged_table, trials_table, recall_table):
        with pytest.raises(DataError, match="another shape"):
            table(broken)
    with pytest.raises(DataError, match="another shape"):
        memories_table([{"name": "handbook"}])


def test_what_is_retained_has_a_row_in_a_verdict_and_a_column_among_memories() -> None:
    with_general = verdict(
        memory=[*outcomes("paraphrase", 90, 96), *outcomes("retained", 38, 40)],
        base=[*outcomes("paraphrase", 0, 96), *outcomes("retained", 40, 40)],
    )
    assert [row[:2] for row in recall_table(with_general).rows][-1] == ("retained", "40")
    known = {**card("handbook"), "report": {"recall": with_general["recall"]}}
    table = memories_table([known, card("other")])
    assert table.head[-2:] == ("retained", "adapter")
    assert [row[-2] for row in table.rows] == ["0.95 [0.83, 0.99]", NOT_RUN]
    assert "retained" not in memories_table([card("other")]).head
