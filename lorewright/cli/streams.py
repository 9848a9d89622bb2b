"""Standard output and error that take any text in any locale and never end a command."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

ERRORS = "lorewright-plain"
"""The codec error handler for characters that a stream's encoding lacks."""
# What tables and sentences of ours hold beyond ASCII; all else is escaped, so nothing is lost.
PLAIN = {
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼╞╡╪", "+"),
    **dict.fromkeys("─━═╌╴╶╸╺", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict(zip("–—‑−×·▶‘’“”", "----x*>''\"\"", strict=True)),
    **dict(zip("≥≤→…", (">=", "<=", "->", "..."), strict=True)),
}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    if char in PLAIN:
        return PLAIN[char], error.start + 1
    one = UnicodeEncodeError(
        error.encoding, error.object, error.start, error.start + 1, error.reason
    )
    return codecs.backslashreplace_errors(one)


codecs.register_error(ERRORS, _plain)


class Stream:
    """A text stream that drops what its reader or its disk does not take.

    A command that writes for minutes must not end because nobody reads its progress; the first
    failure stays in `failure`, for the exit code.
    """

    def __init__(self, stream: Any) -> None:
        """Wrap a stream and have it encode whatever comes."""
        self.stream = stream
        self.failure: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or note why it failed."""
        if self.failure is None:
            try:
                self.stream.write(text)
            except OSError as error:
                self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or note why it failed."""
        if self.failure is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.failure = error
        # Python flushes its own streams once more at exit, and would complain.
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def steady_streams() -> Iterator[Stream | None]:
    """Wrap stdout and stderr for a block; yields stdout, None where it is closed."""
    out, err = (Stream(each) if each is not None else None for each in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out
        for each in (out, err):
            if each is not None:
                each.flush()
