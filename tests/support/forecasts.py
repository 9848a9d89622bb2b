"""What several test modules share: forecasts."""

from __future__ import annotations

from lorewright.law.forecast import CENTRE, CONSTANTS, Forecast

NOTHING = ((0.0,) * len(CONSTANTS),) * len(CONSTANTS)


FORECAST = Forecast(
    dict(zip(CONSTANTS, CENTRE, strict=True)),
    0.1,
    1.2,
    (8, 64),
    (20, 130),
    (1, 5),
    (1, 4),
    (1, 8),
    33,
    NOTHING,
)
