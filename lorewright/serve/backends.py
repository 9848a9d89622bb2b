"""The seam for what generates replies: a protocol, and the implementations by engine name.

To add an engine, write a function from (registry, config, metrics, model) to a `Backend` and enter
it in BACKENDS; tests/serve/test_backends.py runs its contract over every entry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from lorewright.errors import ConfigError
from lorewright.serve.config import ServeConfig
from lorewright.serve.metrics import Metrics
from lorewright.serve.protocol import GenerationRequest
from lorewright.serve.registry import Registry, Target
from lorewright.serve.replies import Completion
from lorewright.serve.upstream import ENGINES, Upstream

if TYPE_CHECKING:
    from lorewright.models.model import Model


class Backend(Protocol):
    """What generates the replies of a server."""

    async def start(self) -> None:
        """Begin to take requests."""

    async def stop(self) -> None:
        """Finish the requests that were begun."""

    async def trouble(self) -> str:
        """Return why no request can be answered now; empty when one can."""

    def gauges(self) -> dict[str, float]:
        """Return numbers for /metrics."""

    def drop_unnamed(self) -> None:
        """Drop the adapters that no name stands for any more, each once no reply uses it."""

    async def load(self, adapter_id: str) -> None:
        """Make sure that an adapter can be served. Raises a LorewrightError otherwise."""

    async def complete(self, request: GenerationRequest, target: Target) -> Completion:
        """Return a reply in one piece. Raises a LorewrightError when there is none."""

    def stream(self, request: GenerationRequest, target: Target) -> AsyncIterator[Completion]:
        """Yield a reply in chunks. Raises as `complete` does, before the first chunk or later."""


OpenBackend = Callable[["Registry", "ServeConfig", "Metrics", "Model | None"], Backend]


def open_backend(
    registry: Registry, config: ServeConfig, metrics: Metrics, model: Model | None
) -> Backend:
    """Return the backend that the configuration names; `model` is the folder's base if at hand.

    Raises ConfigError for an unknown name, and what loading a base raises for `local`.
    """
    name = config.engine or (DETECT if config.engine_url else "local")
    if name not in BACKENDS:
        raise ConfigError(f"engine {name!r} is unknown; use one of {', '.join(BACKENDS)}.")
    return BACKENDS[name](registry, config, metrics, model)


def _local(
    registry: Registry, config: ServeConfig, metrics: Metrics, model: Model | None
) -> Backend:
    from lorewright.serve.local import LocalBackend  # loads torch

    return LocalBackend(registry, config, metrics, model)


def _llamacpp(
    registry: Registry, config: ServeConfig, metrics: Metrics, model: Model | None
) -> Backend:
    """llama.cpp's server at the engine's address; without one, llama.cpp in this process."""
    if config.engine_url:
        return Upstream(registry, config, metrics, model, engine="llamacpp")
    from lorewright.serve.llamacpp import LlamaCpp  # loads torch

    return LlamaCpp(registry, config, metrics, model)


DETECT = "detect"
"""The entry for another server that reports itself what it is."""
BACKENDS: dict[str, OpenBackend] = {
    "local": _local,
    DETECT: partial(Upstream, engine=""),
    **{name: partial(Upstream, engine=name) for name in ENGINES},
    "llamacpp": _llamacpp,
}
"""Every backend by the name that --engine takes."""
