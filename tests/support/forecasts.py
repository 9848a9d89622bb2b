"""A forecast to plan with, without a calibration."""

from __future__ import annotations

from lorewright.law.forecast import PRIOR, Forecast

FORECAST = Forecast(
    tuple(centre for centre, _ in PRIOR.values()),
    0.1,
    1.2,
    {
        "answers": (8, 64),
        "nats an answer": (20, 130),
        "forms an answer": (1, 5),
        "examples a question": (1, 4),
        "rank": (1, 8),
    },
)
