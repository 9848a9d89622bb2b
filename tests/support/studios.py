"""A studio as a user opens it: `lore studio` in a process of its own, and who looks at it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

STORED = Path(__file__).parents[1] / "fixtures" / "folder-2026-11-28"
ROOT = Path(__file__).parents[2]
LORE = [sys.executable, "-c", "from lorewright.cli.main import main; main()"]
PATIENCE = 120.0


@dataclass
class Opened:
    """A studio that answers."""

    address: str
    """Without the token."""
    entrance: str
    """With it."""
    process: subprocess.Popen[str]
    folder: Path
    cache: Path
    """The user's cache of its processes."""
    client: httpx.Client | None = None

    def get(self, path: str, **more: Any) -> httpx.Response:
        """A page, with the cookie."""
        assert self.client is not None
        return self.client.get(path, **more)

    def post(self, path: str, **fields: str) -> httpx.Response:
        """A form that was sent."""
        assert self.client is not None
        return self.client.post(path, data=fields, headers={"origin": self.address})

    def record(self, path: str, **query: str) -> dict[str, Any]:
        """A page's record."""
        answer = self.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def worker(self) -> int:
        """The process that works."""
        listed = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        (pid,) = [int(line.split()[0]) for line in listed if "spawn_main" in line]
        return pid

    def wait(self, path: str, until: Any, seconds: float = 2 * PATIENCE) -> dict[str, Any]:
        """The record of a page once it is so."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if until(record := self.record(path)):
                return record
            time.sleep(0.1)
        raise AssertionError(f"{path} did not become so in {seconds:g} s: {str(record)[:2000]}")


@contextmanager
def opened(folder: Path, *arguments: str, enter: bool = True) -> Iterator[Opened]:
    """Run `lore studio FOLDER` on a free port; with a client that has the cookie if wanted."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*LORE, "studio", str(folder), "--port", "0", "--json", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        entrance = json.loads(process.stdout.readline())["url"]
        cache = Path(environment["LOREWRIGHT_CACHE"])
        studio = Opened(entrance.split("/?")[0], entrance, process, folder, cache)
        if enter:
            studio.client = httpx.Client(base_url=studio.address, timeout=PATIENCE)
            assert studio.client.get(entrance).status_code == 200
        yield studio
    finally:
        if studio.client is not None:
            studio.client.close()
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def stored(place: Path) -> Path:
    """A copy of the stored folder: two memories of the embedded base, `phones` and `tide`."""
    shutil.copytree(STORED, place / "atlas")
    return place / "atlas"
