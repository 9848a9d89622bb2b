"""Claims about the error family."""

import copy
import inspect
import pickle

import pytest

from lorewright import errors

FAMILY = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.LorewrightError)
]
STDLIB = {
    errors.DataError: ValueError,
    errors.Unreadable: errors.DataError,
    errors.ConfigError: ValueError,
    errors.TargetsNotFound: ValueError,
    errors.ModelError: ValueError,
    errors.AdapterError: ValueError,
    errors.UnsupportedAdapter: errors.AdapterError,
    errors.WrongBase: errors.AdapterError,
    errors.NoEffect: errors.AdapterError,
    errors.UnknownMemory: KeyError,
    errors.Locked: TimeoutError,
    errors.StorageError: OSError,
    errors.TeacherError: ConnectionError,
    errors.JobFailed: RuntimeError,
}


@pytest.mark.parametrize("cls", FAMILY)
def test_message_is_plain(cls: type[errors.LorewrightError]) -> None:
    message = "memory 'atlas' is not there; it holds ['b']; run `lore list`"
    assert str(cls(message)) == message


@pytest.mark.parametrize("cls", FAMILY)
def test_every_error_is_caught_as_the_family(cls: type[errors.LorewrightError]) -> None:
    with pytest.raises(errors.LorewrightError, match="happened"):
        raise cls("it happened")


@pytest.mark.parametrize(("cls", "stdlib"), STDLIB.items())
def test_every_error_is_its_stdlib_type(cls: type[Exception], stdlib: type[Exception]) -> None:
    assert issubclass(cls, stdlib)


def test_every_error_is_in_the_table_and_in_the_tree() -> None:
    assert set(STDLIB) | {errors.LorewrightError} == set(FAMILY)
    assert errors.__doc__ is not None
    assert all(cls.__name__ in errors.__doc__ for cls in FAMILY)


@pytest.mark.parametrize("cls", FAMILY)
def test_errors_cross_process_boundaries(cls: type[errors.LorewrightError]) -> None:
    error = cls("what happened")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == "what happened"
