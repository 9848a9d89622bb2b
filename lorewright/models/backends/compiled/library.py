"""The C of this folder: compiled once for this processor, cached, and loaded through cffi.

The cached library's name changes with the source, the compiler and the processor. Where there is no
library `load` says why, and passes run in torch: the same numbers to rounding, in about twice the
time on a small base.
"""

from __future__ import annotations

import atexit
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
from typing import Any, NamedTuple

from lorewright.errors import ConfigError, first_line
from lorewright.files import cache_folder, store

KERNELS = "LOREWRIGHT_KERNELS"
"""The environment variable that chooses: `auto` runs C where it can, `torch` never, `c` insists."""
CHOICES = ("auto", "torch", "c")
SOURCE = Path(__file__).parent / "decoder.c"
"""The file that includes all others."""
INTERFACE = SOURCE.with_name("interface.h")
"""Structures and functions that the C and cffi both read."""
# Sums are taken in another order where the source says so, and nowhere else.
MATHS = ("-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-w", *MATHS)
PROCESSORS = ("-march=native", "-mcpu=native")
"""Options for using all that this processor has; the first that a compiler understands."""
SECONDS = 300


class Library(NamedTuple):
    """The compiled functions, and what makes and casts their arguments."""

    ffi: Any
    lib: Any

    def floats(self, tensor: Any) -> Any:
        """A float32 tensor's values as C has them; the caller holds the tensor."""
        return self.ffi.cast("float *", tensor.data_ptr())

    def longs(self, tensor: Any) -> Any:
        """An int64 tensor's values as C has them; the caller holds the tensor."""
        return self.ffi.cast("long *", tensor.data_ptr())


class Loaded(NamedTuple):
    """The library, or None, and a few words: which compiler made it, or why there is none."""

    library: Library | None
    about: str


def choice() -> str:
    """What LOREWRIGHT_KERNELS chooses. Raises ConfigError for an unknown value."""
    chosen = os.environ.get(KERNELS) or CHOICES[0]
    if chosen not in CHOICES:
        raise ConfigError(f"{KERNELS} must be one of {', '.join(CHOICES)}; got {chosen!r}.")
    return chosen


def load() -> Loaded:
    """The compiled library of this process; compiles it, which takes seconds, if it never was here.

    Raises ConfigError for an unknown LOREWRIGHT_KERNELS, or one that insists on what there is not.
    """
    chosen = choice()
    if chosen == "torch":
        return Loaded(None, f"{KERNELS} is torch")
    loaded = build()
    if chosen == "c" and loaded.library is None:
        why = f"{KERNELS} is c; there is no compiled code: {loaded.about}"
        raise ConfigError(f"{why.rstrip('.')}. Without {KERNELS} it runs in torch.")
    return loaded


@functools.cache
def build() -> Loaded:
    """`load` whatever LOREWRIGHT_KERNELS says; once a process."""
    if os.name == "nt":
        return Loaded(None, "it needs POSIX threads")
    try:
        compiler = find_compiler()
    except ConfigError as error:
        return Loaded(None, str(error).rstrip("."))
    if compiler is None:
        return Loaded(None, "there is no C compiler; install gcc or clang, or pip install ziglang")
    try:
        path = _cached(compiler, cache_folder() / "kernels")
        try:
            library = _opened(path)
        except OSError:  # damaged
            library = _opened(_compile(compiler, path))
    except (OSError, subprocess.SubprocessError) as error:
        return Loaded(None, f"{compiler[0]} failed: {first_line(error)}")
    return Loaded(library, "zig" if "ziglang" in compiler else Path(compiler[0]).name)


def _opened(path: Path) -> Library:
    """Raises OSError for a file that is not as it was compiled."""
    import cffi

    # A truncated library would end the process that maps it.
    if _checksum(path).read_bytes() != _digest(path.read_bytes()):
        raise OSError(f"{path} is damaged")
    ffi = cffi.FFI()
    ffi.cdef(INTERFACE.read_text())
    return Library(ffi, ffi.dlopen(str(path)))


def find_compiler() -> list[str] | None:
    """The command of a C compiler: CC, what is called cc, gcc or clang, or Zig's from PyPI.

    Raises ConfigError for a CC that is no command.
    """
    try:
        configured = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise ConfigError(f"CC is {os.environ['CC']!r}: {error}; mend or unset it.") from error
    names = [configured] if configured else [["cc"], ["gcc"], ["clang"]]
    for name, *arguments in names:
        if path := shutil.which(name):
            return [path, *arguments]
    return [sys.executable, "-m", "ziglang", "cc"] if find_spec("ziglang") else None


def _cached(compiler: list[str], folder: Path) -> Path:
    """The library for this source, compiler and processor; compiled if it is not there."""
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
    """Compile beside `path`, then store there whole: no process ever loads half a library."""
    output = ""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        library = Path(scratch) / path.name
        for processor in PROCESSORS:
            command = [*compiler, *FLAGS, processor, str(SOURCE), "-o", str(library), "-lm"]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            if ran.returncode == 0:
                content = library.read_bytes()
                store(_digest(content), _checksum(path))
                store(content, path)
                return path
            output = output or ran.stderr
    raise OSError(output.strip() or "without a word")


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _processor() -> str:
    """What tells processors apart: a home folder may be shared by machines of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *sorted({x for x in lines if x.startswith(wanted)})])
