"""The C of this wing: compiled once for this processor by the compiler that is here, then loaded.

A compiled library lies in the cache, under a name that changes with the source, the compiler and
the processor. Where it cannot be had `load` says why, and passes run in torch: the same numbers to
rounding, in about twice the time on a small base.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lorewright.errors import ConfigError, first_line
from lorewright.files import cache_folder
from lorewright.models.backends.compiled.layout import declare

KERNELS = "LOREWRIGHT_KERNELS"
"""The environment variable that chooses: `auto` compiles where it can, `torch` never does."""
CHOICES = ("auto", "torch")
SOURCE = Path(__file__).parent / "decoder.c"
"""The file that includes all others."""
# Sums are taken in another order where the source says so, and nowhere else.
MATHS = ("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-w", *MATHS)
PROCESSORS = ("-march=native", "-mcpu=native")
"""How compilers are told to use all that this processor has; the first that is understood."""
SECONDS = 300


class Loaded(NamedTuple):
    """The library, or None, and a few words on which it is or why there is none."""

    library: ctypes.CDLL | None
    says: str


def load() -> Loaded:
    """The compiled library of this process. Raises ConfigError for an unknown LOREWRIGHT_KERNELS.

    Compiles it if it was never compiled here, which takes seconds.
    """
    choice = os.environ.get(KERNELS) or CHOICES[0]
    if choice not in CHOICES:
        raise ConfigError(f"{KERNELS} must be one of {', '.join(CHOICES)}; found {choice!r}.")
    return Loaded(None, f"{KERNELS} is torch") if choice == "torch" else _loaded()


@functools.cache
def _loaded() -> Loaded:
    if os.name == "nt":
        return Loaded(None, "they need POSIX threads")
    compiler = find_compiler()
    if compiler is None:
        return Loaded(None, "no C compiler was found; install gcc or clang, or pip install ziglang")
    try:
        path = _compiled(compiler, cache_folder() / "kernels")
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # a damaged file: made anew
            library = ctypes.CDLL(str(_compile(compiler, path)))
        declare(library)
    except (OSError, subprocess.SubprocessError) as error:
        return Loaded(None, f"{compiler[0]} failed: {first_line(error)}")
    return Loaded(library, "zig" if "ziglang" in compiler else Path(compiler[0]).name)


def find_compiler() -> list[str] | None:
    """The command of a C compiler: CC, what is called cc, gcc or clang, or Zig's from PyPI."""
    asked = shlex.split(os.environ.get("CC", ""))
    names = [asked] if asked else [["cc"], ["gcc"], ["clang"]]
    found = next(([path, *rest] for name, *rest in names if (path := shutil.which(name))), None)
    if found is None and find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return found


def _compiled(compiler: list[str], folder: Path) -> Path:
    """The library for this source, compiler and processor; made if it is not there."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=SECONDS)
    sources = [path.read_bytes() for path in sorted(SOURCE.parent.glob("*.[ch]"))]
    parts = (*sources, version.stdout, _processor().encode(), " ".join(FLAGS).encode())
    name = f"{hashlib.sha256(b'/'.join(parts)).hexdigest()[:16]}.so"
    if (folder / name).exists():
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:  # a cache that may not be written: compiled for this process alone
        folder = Path(tempfile.mkdtemp(prefix="lorewright-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _compile(compiler, folder / name)


def _compile(compiler: list[str], path: Path) -> Path:
    """Compile beside `path`, then move there: no process ever loads half a library."""
    said = ""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        for processor in PROCESSORS:
            command = [*compiler, *FLAGS, processor, str(SOURCE), "-o", str(made), "-lm"]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            if ran.returncode == 0:
                os.replace(made, path)
                return path
            said = said or ran.stderr
    raise OSError(said.strip() or "it says nothing")


def _processor() -> str:
    """What tells processors apart: a home folder may be shared by machines of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *sorted({x for x in lines if x.startswith(wanted)})])
