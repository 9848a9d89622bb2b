"""What is counted, for Prometheus: requests, seconds, tokens, and gauges of whoever answers.

Each server has a registry of its own, so that two in one process do not mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

PATHS = (
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/health",
    "/ready",
    "/metrics",
    "/openapi.json",
)
"""Paths that have a label of their own; what a client makes up must not make labels."""
PREFIXES = ("/v1/models/", "/admin/")


class Meters:
    """Counters of one server."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self._requests = Counter(
            "lorewright_requests",
            "Requests answered, by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "lorewright_request_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            ["path"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=self.registry,
        )
        self._tokens = Counter(
            "lorewright_tokens", "Tokens, by kind.", ["kind"], registry=self.registry
        )
        self._routed = Counter(
            "lorewright_routed",
            "Requests to auto, by whether a memory was found.",
            ["found"],
            registry=self.registry,
        )
        self._inside = Gauge(
            "lorewright_requests_inside", "Requests under way.", registry=self.registry
        )
        self._gauge = Gauge
        cpu = Gauge("lorewright_cpu_seconds", "CPU time of this process.", registry=self.registry)
        cpu.set_function(time.process_time)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        known = path if path in PATHS else ""
        known = known or next((f"{p}*" for p in PREFIXES if path.startswith(p)), "other")
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)

    def used(self, usage: Mapping[str, int]) -> None:
        """Count the tokens of one reply, from its usage object."""
        for kind in ("prompt", "completion"):
            self._tokens.labels(kind).inc(usage.get(f"{kind}_tokens") or 0)

    def routed(self, *, found: bool) -> None:
        """Count one request to `auto`."""
        self._routed.labels("yes" if found else "no").inc()

    def inside(self, n: int) -> None:
        """Set how many requests are under way."""
        self._inside.set(n)

    def watch(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Show numbers that are read whenever somebody looks."""
        for name in read():
            gauge = self._gauge(
                f"lorewright_{name}", name.replace("_", " ").capitalize(), registry=self.registry
            )
            gauge.set_function(partial(_one, read, name))

    def text(self) -> bytes:
        """Everything, in Prometheus' format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


def _one(read: Callable[[], Mapping[str, float]], name: str) -> float:
    return read()[name]
