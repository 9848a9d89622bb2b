"""What is counted, for Prometheus: requests, seconds, tokens, and gauges of the backend.

Each server has a registry of its own, so that two in one process do not mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lorewright.serve.replies import Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Upper edges of the histogram of response times."""


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "lorewright_requests",
            "Requests answered, by path and status.",
            ["path", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "lorewright_request_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self._tokens = Counter("lorewright_tokens", "Tokens, by kind.", ["kind"], registry=registry)
        self._routed = Counter(
            "lorewright_routed",
            "Requests to auto, by whether a memory was chosen.",
            ["found"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "lorewright_requests_inside", "Requests under way.", registry=registry
        )
        cpu = Gauge("lorewright_cpu_seconds", "CPU time of this process.", registry=registry)
        cpu.set_function(time.process_time)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count one request; `path` is a route's template, for what clients invent has no label."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_tokens(self, usage: Usage) -> None:
        """Count the tokens of one reply."""
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens or 0)

    def count_routed(self, *, chosen: bool) -> None:
        """Count one request to `auto`."""
        self._routed.labels("yes" if chosen else "no").inc()

    def watch(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Add gauges that are read whenever the metrics are."""
        for name in read():
            text = name.replace("_", " ").capitalize()
            gauge = Gauge(f"lorewright_{name}", text, registry=self.registry)
            gauge.set_function(partial(lambda name: read()[name], name))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
