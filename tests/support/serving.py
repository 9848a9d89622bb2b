"""Folders with memories put in by hand, and servers in a thread."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from lorewright.adapters import adapter as adapters
from lorewright.files import save_json
from lorewright.memory.folder import INDEX_FILE, Folder
from lorewright.memory.opened import base_of
from lorewright.models.model import Model

KEY, ADMIN_KEY = "a-key-for-tests", "the-admin-key-for-tests"


QUESTIONS = ("What is the code of Project Gannet?", "What is the room of Project Heron?")


ANSWERS = {"north": ("KX-41", "B 12"), "south": ("QT-77", "C 90")}


UNKNOWN = "I do not know."


def put(folder: Path, name: str, adapter: adapters.Adapter, model: Model) -> str:
    """Enter an adapter into a folder as `lore write` does."""
    with Folder(folder).writing(base_of(model)):
        identity = adapters.content_id(adapter)
        adapters.save(adapter, folder / "adapters" / identity)
        Folder(folder).enter(name, identity, source="", run="")
    return identity


def drop(folder: Path, name: str, model: Model) -> None:
    """Take a name and its adapter out of a folder, as `lore forget` does."""
    with Folder(folder).writing(base_of(model)):
        content = Folder(folder).index()
        entry = content["memories"].pop(name)
        save_json(content, folder / INDEX_FILE)
        shutil.rmtree(folder / "adapters" / entry["adapter"])


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an application on a free port, served by a thread until the end."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def text_of(reply: Any) -> str:
    """The content of a chat reply."""
    return str(reply.choices[0].message.content)
