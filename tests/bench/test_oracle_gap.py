"""Claims about the distance to the oracle: its parts add up, and what is unscored is counted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorewright.bench.oracle_gap import Trial, oracle_gap
from lorewright.errors import DataError


def test_gap_is_misses_and_merges_and_identities_hold() -> None:
    rows = [(0, 1, 1, 1, 0, True)] * 6 + [(0, 1, 0, 0, 0, False)] * 2 + [(0, 1, 0, 1, 0, True)]
    gap = oracle_gap([Trial(*row[:5], hit=row[5]) for row in rows])
    assert (gap.base.mean, gap.oracle.mean, gap.wrong.mean) == (0, 1, 0)
    assert gap.routed.mean == pytest.approx(6 / 9)
    assert gap.hit.mean == pytest.approx(7 / 9)
    assert gap.missed.mean == pytest.approx(2 / 9)
    assert gap.merged.mean == pytest.approx(1 / 9)


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.floats(0, 1)] * 5, st.booleans()), min_size=1, max_size=20))
def test_parts_of_the_gap_add_up(
    rows: list[tuple[float, float, float, float, float, bool]],
) -> None:
    gap = oracle_gap([Trial(*row[:5], hit=row[5]) for row in rows])
    total = sum(row[1] - row[2] for row in rows) / len(rows)
    assert gap.missed.mean is not None and gap.merged.mean is not None
    assert gap.missed.mean + gap.merged.mean == pytest.approx(total, abs=1e-9)


def test_unscored_is_counted_and_never_zero() -> None:
    trials = [Trial(None, 1.0, 1.0, 1.0, None, True), Trial(0.5, 1.0, None, 1.0, None, False)]
    gap = oracle_gap(trials)
    assert gap.n_unscored == {"base": 1, "oracle": 0, "routed": 1, "abstaining": 0, "wrong": 2}
    assert (gap.base.mean, gap.routed.mean, gap.wrong.mean) == (0.5, 1.0, None)
    assert gap.missed.n == 1
    with pytest.raises(DataError, match="no trials"):
        oracle_gap([])
