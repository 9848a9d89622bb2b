"""What every test gets: no network, one thread, a cache of its own, the same random cases each run.

The environment is set at import, before any test module can import torch or transformers, which
read it once. Knows nothing about models: a fixture that holds one lives in the module that uses it.
"""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = ["support.commands", "support.endpoints"]  # the fixtures `lore` and `server`
KERNELS = Path(tempfile.gettempdir()) / f"lorewright-test-kernels-{os.environ.get('USER', 'me')}"
NETWORK_ALLOWED = os.environ.get("LOREWRIGHT_NETWORK") == "1"

os.environ["OMP_NUM_THREADS"] = "1"  # results do not depend on the machine's number of cores
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # tests fork and start subprocesses
os.environ["NO_COLOR"] = "1"  # command output is compared as plain text
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "lorewright-matplotlib"))
if not NETWORK_ALLOWED:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    # An empty hub cache: a test that passes only where somebody once fetched gpt2 is no test.
    os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "lorewright-empty-hub-cache")

# Fixtures of modules and sessions run before a test's own cache is there; in the user's may lie a
# sentence encoder or a base.
_CACHE = Path(tempfile.mkdtemp(prefix="lorewright-test-cache-"))
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
KERNELS.mkdir(mode=0o700, exist_ok=True)
(_CACHE / "kernels").symlink_to(KERNELS, target_is_directory=True)
os.environ["LOREWRIGHT_CACHE"] = str(_CACHE)

settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    for item in items:
        if item.get_closest_marker("network") and not NETWORK_ALLOWED:
            item.add_marker(pytest.mark.skip(reason="needs the internet: set LOREWRIGHT_NETWORK=1"))
        if item.get_closest_marker("gpu") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch finds none"))
        if item.get_closest_marker("llamacpp") and find_spec("xllamacpp") is None:
            item.add_marker(
                pytest.mark.skip(reason="needs llama.cpp: pip install lorewright[llamacpp]")
            )


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Torch computes on one thread, also where something imported it before this file was read."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's epsilon above rounding: it turns a gradient that is noise into a whole step."""
    from lorewright.training import optimisers as optim

    monkeypatch.setattr(optim, "EPS", 1e-5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test, and each process it starts, has a cache of its own, with compiled code in it.

    Compiling takes seconds and files are named by source, compiler and processor, so that code is
    shared between tests and between runs.
    """
    folder = tmp_path_factory.mktemp("cache")
    KERNELS.mkdir(mode=0o700, exist_ok=True)
    (folder / "lorewright").mkdir()
    (folder / "lorewright" / "kernels").symlink_to(KERNELS, target_is_directory=True)
    monkeypatch.setenv("LOREWRIGHT_CACHE", str(folder / "lorewright"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def empty_cache(own_cache: Path) -> Path:
    """The test's cache without compiled code, for tests of compiling."""
    (own_cache / "lorewright" / "kernels").unlink()
    return own_cache


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sockets reach this machine only; trying to leave fails the test, even if swallowed."""
    if request.node.get_closest_marker("network"):
        yield
        return
    attempts: list[str] = []
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_unless_local(address[0], attempts)
        connect(self, address)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_unless_local(host, attempts)
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)
    yield
    if attempts:
        hosts = sorted(set(attempts))
        pytest.fail(f"the test tried to reach {hosts}: mark it `network`, or stay local")


def _refuse_unless_local(host: Any, attempts: list[str]) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or name in ("", "localhost", socket.gethostname()):
        return
    try:
        local = ipaddress.ip_address(name).is_loopback or ipaddress.ip_address(name).is_unspecified
    except ValueError:
        local = False
    if not local:
        attempts.append(str(name))
        raise ConnectionRefusedError(f"tests have no network: {name!r} was looked up")
