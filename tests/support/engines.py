"""Adapters that were never trained, and a double of the servers that can be upstream."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from lorewright.adapters.adapter import Adapter, capture
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.models.model import Model


def untrained(model: Model, config: LoraConfig, size: float = 0.3) -> Adapter:
    """An adapter that changes what the base says, in no useful way."""
    generator = torch.Generator().manual_seed(config.seed)
    with attach(model.network, [config]) as stack:
        for layer in stack.modules.values():
            layer.B_NOR.data.normal_(generator=generator).mul_(size)
        return capture(stack, 0, base_id=model.name, base_digest=model.digest)


@dataclass
class EngineDouble:
    """A server that takes adapters as one of the known ones does, and records its calls."""

    owner: str
    loaded: dict[str, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    status: int = 200

    def app(self) -> FastAPI:
        """The server; `model` or `lora_path` must name the base or an adapter that is loaded."""
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            about = {"object": "model", "created": 1, "owned_by": self.owner}
            lora = [{"id": name, **about, "parent": "their-base"} for name in self.loaded]
            return {"object": "list", "data": [*lora, {"id": "their-base", **about}]}

        async def load(http: Request) -> Any:
            body = await http.json()
            name, path = body["lora_name"], Path(body["lora_path"])
            self.calls.append(f"load {name}")
            if name in self.loaded:
                return refusal(400, f"The lora adapter '{name}' has already been loaded.")
            if not (path / "adapter_config.json").exists():
                return refusal(404, "No adapter found")
            self.loaded[name] = str(path)
            return PlainTextResponse("Success")

        async def unload(http: Request) -> Any:
            name = (await http.json())["lora_name"]
            self.calls.append(f"unload {name}")
            return PlainTextResponse("Success") if self.loaded.pop(name, "") else refusal(404, "no")

        prefix = "" if self.owner == "sglang" else "/v1"
        if self.owner != "llamacpp":
            app.post(f"{prefix}/load_lora_adapter")(load)
            app.post(f"{prefix}/unload_lora_adapter")(unload)

        @app.get("/lora-adapters")
        async def listed() -> list[dict[str, Any]]:
            files = enumerate(self.loaded.values())
            return [{"id": i, "path": path, "scale": 1.0} for i, path in files]

        @app.post("/v1/chat/completions")
        async def chat(http: Request) -> Any:
            body = await http.json()
            self.bodies.append(body)
            if self.status != 200:
                return refusal(self.status, "the engine's own words")
            name = body.get("lora_path") or body["model"]
            if name not in (*self.loaded, "their-base"):
                return refusal(404, f"The model `{name}` does not exist.")
            who = {"id": "x", "object": "chat.completion", "created": 1, "model": name}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            if not body.get("stream"):
                message = {"role": "assistant", "content": f" from {name}\n"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                return {**who, "choices": [choice], "usage": usage}
            deltas = [{"index": 0, "delta": {"content": text}} for text in (" ", " from ", name)]
            parts = [json.dumps({**who, "choices": [delta]}) for delta in deltas]
            lines = [f"data: {part}\n\n" for part in [*parts, "[DONE]"]]
            return StreamingResponse(iter(lines), media_type="text/event-stream")

        return app


def refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "code": status}}, status)
