"""Claims about schedules: where the rate begins and ends, and when it falls."""

from __future__ import annotations

import pytest

from lorewright.training.config import Epoch, WriteConfig, rate
from lorewright.training.schedules import SCHEDULES, Elapsed


def rates(name: str, budget: int, **elapsed: float) -> list[float]:
    return [SCHEDULES[name](1.0, Elapsed(at, budget, **elapsed)) for at in range(budget + 1)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_starts_at_the_peak_and_stays_within_it(name: str) -> None:
    result = rates(name, 10)
    assert result[0] == 1 and all(0 <= rate <= 1 for rate in result)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_linear_and_cosine_fall_to_zero(name: str) -> None:
    result = rates(name, 8)
    assert result == sorted(result, reverse=True)
    assert result[-1] == pytest.approx(0.0)


def test_restart_falls_to_zero_twice_the_second_time_from_half_the_peak() -> None:
    result = rates("restart", 10)
    assert result[3] == pytest.approx(0.5) and result[6] == pytest.approx(0.5) and result[10] == 0
    assert SCHEDULES["restart"](1.0, Elapsed(5.999, 10)) < 1e-3
    assert result[6:] == sorted(result[6:], reverse=True)


def test_wsd_holds_the_rate_until_nearly_all_is_recalled_then_lets_it_fall() -> None:
    config = WriteConfig(schedule="wsd", epochs=30, lr=1.0)

    def epochs(*recalled: int) -> list[Epoch]:
        return [Epoch(i + 1, 30, 0.0, n, 10, False, 0.0, 0.0) for i, n in enumerate(recalled)]

    assert rate(config, epochs(1, 5, 8), 3) == 1.0
    falling = epochs(1, 5, 8, 8, 8, 9)
    assert rate(config, falling, 6) == pytest.approx(1.0)
    assert rate(config, falling, 7) == pytest.approx(0.55)
    assert rate(config, falling, 12) == pytest.approx(0.1)
    assert rate(config, epochs(*[0] * 21), 21) < 1.0
    late = [rate(config, epochs(*[0] * (n - 1), 9), n) for n in range(20, 30)]
    assert late == sorted(late, reverse=True), "once falling it never rises again"
