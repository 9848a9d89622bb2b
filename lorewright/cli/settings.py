"""Options of a command from the fields of a config dataclass, and the dataclass from the options.

A default is written once, in the dataclass; the docstring under a field, up to its first blank
line, is the help of its option. A table of `Flag`s says where an option differs from its field.

    bool           --name / --no-name                      tuple of str    --name, repeated
    X or None      0 (or nothing) stands for None          tuple of int    --name 1,2,8

Choices are the keys of a dict, named as "module.DICT". Docstrings and keys are read from the
source, so that a dict in a module that imports torch costs `--help` nothing.
"""

from __future__ import annotations

import ast
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Annotated, Any

import typer
from rich.markup import escape

from lorewright.errors import ConfigError

MAX_RANGE = 9999
"""Highest number of a range like 0-3."""


@dataclass(frozen=True)
class Flag:
    """Where an option differs from its field."""

    name: str = ""
    """As typed, like "--batch"; empty = the field's name."""
    choices: str = ""
    """Where the possible values are the keys of a dict: "lorewright.package.module.DICT"."""
    least: float | None = None
    most: float | None = None
    panel: str = ""
    """Heading in the help; empty = that of the group."""
    help: str = ""
    """In place of the field's docstring."""
    kind: Any = None
    """Type of the option, where `parse` makes the field's value from another."""
    parse: Callable[[Any], Any] | None = None
    environment: str = ""
    """Variable that sets the option where the command line does not."""


@dataclass(frozen=True)
class Group:
    """The options of one dataclass on one command."""

    config: type
    flags: Mapping[str, Flag] = field(default_factory=dict)
    """By field."""
    without: tuple[str, ...] = ()
    """Fields that are no options here; they have their default, or what the command sets."""
    only: tuple[str, ...] = ()
    """The fields that are options; () = all."""
    panel: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are no options, with their values."""

    def fields(self) -> list[Field[Any]]:
        """Return the fields that are options, in order."""
        hidden = {*self.without, *self.fixed}
        listed = [f for f in fields(self.config) if f.init and f.name not in hidden]
        return [f for f in listed if f.name in self.only] if self.only else listed

    def build(self, values: Mapping[str, Any], **more: Any) -> Any:
        """Return the dataclass from an option's value a field; `more` sets fields without one."""
        types = _types(self.config)
        for each in self.fields():
            flag = self.flags.get(each.name, Flag())
            more[each.name] = _value(each, types[each.name], flag, values[each.name])
        return self.config(**self.fixed, **more)


def with_options(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that puts options in place of a command's config parameters.

    Each name is a parameter of the command; it gets the group's dataclass. Where the command has a
    parameter of the same name as a field, the field is no option of its own and keeps its default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        at = {name: _without(group, set(own)) for name, group in groups.items()}
        shown: list[inspect.Parameter] = []
        for name, parameter in own.items():
            shown += _parameters(at[name]) if name in at else [parameter]
        by_keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shown]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            configs = {name: group.build(values) for name, group in at.items()}
            rest = {name: value for name, value in values.items() if name in own}
            command(**rest, **configs)

        run.__signature__ = inspect.Signature(by_keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in by_keyword}
        return run

    return decorate


def _without(group: Group, names: set[str]) -> Group:
    return replace(group, without=(*group.without, *names))


def _parameters(group: Group) -> list[inspect.Parameter]:
    """An option for each field, as typer reads it from a signature."""
    types, docs = _types(group.config), field_docs(group.config)
    parameters = []
    for each in group.fields():
        flag = group.flags.get(each.name, Flag())
        kind, default = flag.kind or _option_type(types[each.name]), _default(each)
        shown: bool | str = True
        if isinstance(default, tuple):
            shown, default = ",".join(map(str, default)) or False, None
        option = typer.Option(
            *([flag.name] if flag.name else []),
            help=_help(flag, docs.get(each.name, "")),
            min=flag.least,
            max=flag.most,
            envvar=flag.environment or None,
            show_default=shown,
            rich_help_panel=flag.panel or group.panel or None,
        )
        parameter = inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=Annotated[kind, option],
        )
        parameters.append(parameter)
    return parameters


def _help(flag: Flag, doc: str) -> str:
    text = flag.help or doc
    names = dict_keys(flag.choices) if flag.choices else []
    if not all(name in text for name in names):
        text = f"{text.rstrip('.')}: {', '.join(names)}."
    return escape(text)


def _default(each: Field[Any]) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


@functools.cache
def _types(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _required(kind: Any) -> tuple[Any, bool]:
    """A field's type without None, and whether None was possible."""
    parts = typing.get_args(kind) if typing.get_origin(kind) in (UnionType, typing.Union) else ()
    inner = [part for part in parts if part is not type(None)]
    return (inner[0], True) if parts else (kind, False)


def _option_type(kind: Any) -> Any:
    inner, optional = _required(kind)
    if typing.get_origin(inner) is tuple:
        return (str if typing.get_args(inner)[0] is int else list[str]) | None
    return inner | None if optional else inner


def _value(each: Field[Any], kind: Any, flag: Flag, given: Any) -> Any:
    """A field's value from what its option has."""
    if flag.parse is not None:
        return flag.parse(given)
    inner, optional = _required(kind)
    if typing.get_origin(inner) is tuple:
        if not given:
            return _default(each)
        name = flag.name or f"--{each.name.replace('_', '-')}"
        return whole_numbers(name, given) if isinstance(given, str) else tuple(given)
    return (given or None) if optional else given


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return `0-3,7` as (0, 1, 2, 3, 7), each once; raises ConfigError for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.isascii() and end.isdecimal() for end in ends):
            raise ConfigError(f"{option} {text!r} is no list of numbers; write it like 0-3,7.")
        low, high = map(int, ends)
        if not low <= high or (dash and high > MAX_RANGE):
            raise ConfigError(
                f"{option} {text!r} holds the range {low} to {high}; write the lower one first, "
                f"and none above {MAX_RANGE}."
            )
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))


@functools.cache
def field_docs(config: type) -> dict[str, str]:
    """Return the docstring under each field, up to its first blank line, as one line."""
    base = config.__base__
    docs = dict(field_docs(base)) if base and is_dataclass(base) else {}
    (body,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
            text = ast.literal_eval(after.value).strip().partition("\n\n")[0]
            docs[ast.unparse(before.target)] = " ".join(text.split())
    return docs


@functools.cache
def dict_keys(place: str) -> list[str]:
    """Return the keys of "lorewright.package.module.DICT" from its source, without importing it.

    A key is a string, or a name that the module sets to one; a tuple of these will do as well. What
    is unpacked from another dict with ** is left out.
    """
    module, _, name = place.rpartition(".")
    spec = find_spec(module)
    assert spec and spec.origin, f"{module} is no module"
    values = dict(_assigned(ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body))
    table = values.get(name)
    assert isinstance(table, ast.Dict | ast.Tuple), f"{place} is no dict or tuple, written out"
    keys = [key for key in (table.keys if isinstance(table, ast.Dict) else table.elts) if key]
    plain = [values.get(key.id, key) if isinstance(key, ast.Name) else key for key in keys]
    return [str(ast.literal_eval(key)) for key in plain]


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Names that a module sets, with their values."""
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value:
            yield ast.unparse(node.target), node.value
        elif isinstance(node, ast.Assign):
            (target,), value = node.targets, node.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                yield from zip(map(ast.unparse, target.elts), value.elts, strict=True)
            else:
                yield ast.unparse(target), value
