"""llama.cpp in this process: the base's own GGUF file and the folder's memories, as one engine.

On a CPU it decodes one stream several times as fast as torch does: its weights stay quantised. It
is started on a free loopback address with a key that nobody else knows, and reached as any other
server is. What it cannot do is take adapters while it runs: when a memory is requested that it was
not started with, or one was forgotten, it is started anew between two replies, which takes a second
or two on a small base. Requests for different memories run one after the other there.

Needs the extra `llamacpp`; see `upstream` for llama.cpp's server elsewhere.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorewright.errors import ConfigError, LorewrightError, ModelError
from lorewright.models.catalogue import POCKET, gguf_file
from lorewright.serve.config import ServeConfig
from lorewright.serve.metrics import Metrics
from lorewright.serve.protocol import GenerationRequest, redacted, unavailable
from lorewright.serve.registry import Registry
from lorewright.serve.upstream import Upstream

if TYPE_CHECKING:
    from lorewright.models.model import Model

MOST_PARALLEL = 8
"""Replies that it generates at once, at most: each has a share of the keys and values."""
CONTEXT_TOKENS = 4096
"""Longest prompt with its reply, where the base would read more; memory grows with it."""


class LlamaCpp(Upstream):
    """Replies of llama.cpp, which runs here."""

    def __init__(
        self, registry: Registry, config: ServeConfig, metrics: Metrics, model: Model | None
    ) -> None:
        """Load the base's file and every memory.

        `model` is the folder's base, with which memories are exported; it is loaded if it is not
        given. Raises ConfigError without the extra or without a GGUF file of the base, and what
        loading a base raises.
        """
        from lorewright.memory.opened import OpenFolder  # loads torch

        self._parallel = min(config.max_concurrency, MOST_PARALLEL)
        self._model = OpenFolder.open(registry.folder, model, create=False).model
        self._exported: dict[str, Path] = {}
        self._refused: dict[str, str] = {}
        """Memories that it cannot take, and why."""
        self._secret = secrets.token_urlsafe(24)
        self._idle = asyncio.Condition()
        self._n_replying = 0
        self._restarts = 0
        """Requests that wait until it is started anew."""
        self._server: Any = None
        self._files = tempfile.TemporaryDirectory(prefix="lorewright-")
        try:
            self._base_file = self._gguf_of_base()
            url = self._run(registry)
        except LorewrightError:
            self._files.cleanup()
            raise
        own = replace(config, engine_url=url, engine_key=self._secret)
        super().__init__(registry, own, metrics, None, engine="llamacpp")

    async def stop(self) -> None:
        """Close the connections, end llama.cpp and delete what was exported for it."""
        await super().stop()
        self._server = None
        self._files.cleanup()

    def gauges(self) -> dict[str, float]:
        """Return how many adapters it was started with, and the requests sent."""
        return {**super().gauges(), "adapters_loaded": len(self._exported)}

    def drop_unnamed(self) -> None:
        """Delete the files of memories that are gone; it holds them until it is started anew."""
        named = set(self.registry.names.values())
        for adapter_id in [each for each in self._exported if each not in named]:
            self._exported.pop(adapter_id).unlink(missing_ok=True)

    async def load(self, adapter_id: str) -> None:
        """Have it started with an adapter. Raises APIError 503 for one that it cannot take."""
        async with self._using(adapter_id):
            pass

    @asynccontextmanager
    async def _using(self, adapter_id: str) -> AsyncIterator[dict[str, Any]]:
        """Inside the block it is not started anew, and has the adapter."""
        await self._enter(adapter_id)
        try:
            async with super()._using(adapter_id) as fields:
                yield fields
        finally:
            async with self._idle:
                self._n_replying -= 1
                self._idle.notify_all()

    async def _enter(self, adapter_id: str) -> None:
        self.drop_unnamed()
        async with self._idle:
            if self._has(adapter_id):
                # Whoever waits for a start goes first, or it would wait as long as others come.
                await self._idle.wait_for(lambda: not self._restarts)
            if not self._has(adapter_id):
                self._restarts += 1
                try:
                    await self._idle.wait_for(lambda: not self._n_replying)
                    if not self._has(adapter_id):  # nor did another request start it meanwhile
                        await self._start_anew(adapter_id)
                finally:
                    self._restarts -= 1
                    self._idle.notify_all()
            self._n_replying += 1

    def _has(self, adapter_id: str) -> bool:
        """Whether it can answer for an adapter as it runs, and holds none that was forgotten."""
        return (not adapter_id or adapter_id in self._exported) and self._started_with <= set(
            self._exported
        )

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        """The request as it is passed on, in the characters that the base reads."""
        body = super()._body(request)
        if isinstance(body.get("prompt"), str):
            body["prompt"] = self._normalise(body["prompt"])
        for message in body.get("messages", ()):
            if isinstance(message.get("content"), str):
                message["content"] = self._normalise(message["content"])
        return body

    def _normalise(self, text: str) -> str:
        """As the embedded base's tokenizer does before it splits; GGUF has no place for that."""
        if self._model.name != POCKET:
            return text
        return str(self._model.tokenizer.backend_tokenizer.normalizer.normalize_str(text))

    async def _start_anew(self, adapter_id: str) -> None:
        self.url = await asyncio.to_thread(self._run, self.registry)
        if self._client is not None:
            self._client.base_url = self.url
        if adapter_id and adapter_id not in self._exported:
            why = self._refused.get(adapter_id, "it is no adapter of this folder")
            raise unavailable(f"llama.cpp does not take adapter {adapter_id}: {why}")

    # -- what it is started with -----------------------------------------------------------------

    def _gguf_of_base(self) -> Path:
        from lorewright.models.export import BASE_FILE, export_base

        if self._model.name == POCKET:
            path = Path(self._files.name) / BASE_FILE
            export_base(self._model, path)
            return path
        if (file := gguf_file(self._model.name)) is None:
            raise ConfigError(
                f"engine llamacpp needs a GGUF file of {self._model.name!r}, and there is none; "
                "convert it with llama.cpp's convert_hf_to_gguf.py and write memories on the "
                ".gguf file, start llama-server yourself and give --engine-url, or use --engine "
                "local."
            )
        return file

    def _export(self, registry: Registry) -> None:
        """Write the files of all memories that are there now and have none yet."""
        from lorewright.adapters.adapter import load
        from lorewright.models.export import to_gguf

        for adapter_id in sorted({*registry.names.values()} - set(self._exported)):
            try:
                adapter = load(registry.path(adapter_id))
                out = Path(self._files.name)
                self._exported[adapter_id] = Path(to_gguf(adapter, self._model, out, "m").path)
                self._refused.pop(adapter_id, None)
            except LorewrightError as error:  # of another kind, or damaged: the others are served
                self._refused[adapter_id] = redacted(str(error), registry.folder)

    def _run(self, registry: Registry) -> str:
        """Start it with all memories, the one before ended; return its address."""
        try:
            import xllamacpp
        except ImportError as error:
            raise ConfigError(
                "engine llamacpp without --engine-url needs llama.cpp in this process; install it: "
                "pip install 'lorewright[llamacpp]'"
            ) from error
        import torch

        self._export(registry)
        self._server = None  # its port and its memory, before the next one takes as much
        params = xllamacpp.CommonParams()
        params.model.path = str(self._base_file)
        params.lora_adapters = [
            xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in self._exported.values()
        ]
        params.n_ctx = self._parallel * min(self._model.context, CONTEXT_TOKENS)
        params.n_parallel = self._parallel
        params.warmup = False
        threads = torch.get_num_threads()
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [self._secret]
        params.verbosity = 0
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"llama.cpp could not be started with {self._base_file.name} and "
                f"{len(self._exported)} memories: {error}; use --engine local."
            ) from error
        self._started_with = set(self._exported)
        return str(self._server.listening_address)
