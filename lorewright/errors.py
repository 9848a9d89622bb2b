"""Everything that can go wrong, as one family.

Every class is also the standard-library type that a caller would expect, so ``except ValueError``
and ``except OSError`` work. Messages say what was requested, what was there and what to do.

    LorewrightError
    ├── DataError           (ValueError)        a file or a text that cannot be knowledge
    │   └── Unreadable                          no text can be taken out of a file
    ├── ConfigError         (ValueError)        a setting that does not exist or fit
    ├── TargetsNotFound     (ValueError)        a LoRA target that names no layer
    ├── ModelError          (ValueError)        a base model that cannot be loaded or used
    ├── AdapterError        (ValueError)        an adapter that cannot be read or bound
    │   ├── UnsupportedAdapter                  it is sound, and of a kind that is not read here
    │   ├── WrongBase                           it was written on another base model
    │   └── NoEffect                            it loads, but changes nothing
    ├── UnknownMemory       (KeyError)          a name that the memory does not hold
    ├── Locked              (TimeoutError)      another process is writing
    ├── StorageError        (OSError)           the disk refused: full, read-only, gone
    ├── TeacherError        (ConnectionError)   the model that rewrites text did not answer
    └── JobFailed           (RuntimeError)      some jobs of a sweep came to nothing
"""


class LorewrightError(Exception):
    """The root of the family: the message is one plain sentence or two, fit for a terminal."""


class DataError(LorewrightError, ValueError):
    """A file or a text cannot be read as knowledge or as probes."""


class Unreadable(DataError):
    """No text can be taken out of a file: scanned, encrypted, damaged, or for lack of a package."""


class ConfigError(LorewrightError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class TargetsNotFound(LorewrightError, ValueError):
    """A LoRA target matches no linear layer inside the text decoder."""


class ModelError(LorewrightError, ValueError):
    """A base model or its tokenizer cannot be loaded or cannot do what was requested."""


class AdapterError(LorewrightError, ValueError):
    """An adapter on disk is incomplete, corrupt, or cannot be bound."""


class UnsupportedAdapter(AdapterError):
    """An adapter is sound and of a kind in which A and B are not all; they alone are read here."""


class WrongBase(AdapterError):
    """An adapter was written on another base model than the one that is loaded."""


class NoEffect(AdapterError):
    """An adapter loads without complaint and leaves the model as it was."""


class UnknownMemory(LorewrightError, KeyError):
    """A name was requested that the memory does not hold."""

    def __str__(self) -> str:
        """Return the plain message; KeyError alone would put quotes around it."""
        return Exception.__str__(self)


class Locked(LorewrightError, TimeoutError):
    """Another process holds the memory's write lock."""


class StorageError(LorewrightError, OSError):
    """The disk refused a read or a write; nothing half-written is left behind."""


class TeacherError(LorewrightError, ConnectionError):
    """The language model that rewrites text could not be reached or did not answer."""


class JobFailed(LorewrightError, RuntimeError):
    """Some jobs of a sweep came to nothing; the records of the others are stored."""


def first_line(error: Exception) -> str:
    """The first line of what another library's error says, to go into a sentence of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip(" .")
