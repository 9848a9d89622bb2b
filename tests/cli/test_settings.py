"""Claims about options from dataclasses: each default and each sentence is written once."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from support.commands import Lore
from typer.testing import CliRunner

from lorewright.bench.task import TASKS, load
from lorewright.cli.bench import command_of
from lorewright.cli.main import app as lore_app
from lorewright.cli.options import LESSON, LORA, WRITE
from lorewright.cli.serve import SERVE
from lorewright.cli.settings import Flag, Group, dict_keys, field_docs, whole_numbers, with_options
from lorewright.errors import ConfigError


@dataclass(frozen=True)
class Oven:
    """A dataclass from outside the package."""

    hours: int = 3
    """How long it bakes."""
    heat: float | None = None
    """Degrees; 0 = cold.

    What the help leaves out.
    """
    tins: tuple[int, ...] = (1, 2)
    """Which tins."""
    loaves: tuple[str, ...] = ("rye",)
    """What is baked."""
    fan: bool = False
    """Whether air moves."""
    label: str = field(default="plain", metadata={"unused": True})
    """Its [name]."""


@dataclass(frozen=True)
class Later(Oven):
    """The same with another default."""

    hours: int = 7
    """How long it rests."""


def built(group: Group, *arguments: str) -> Any:
    """The dataclass that a command with these options gets."""
    configs: list[Any] = []
    app = typer.Typer()

    @app.command()
    @with_options(config=group)
    def bake(config: Oven, extra: Annotated[str, typer.Option(help="One more.")] = "") -> None:
        configs.append(config)

    ran = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return configs[0]


def help_of(group: Group) -> str:
    app = typer.Typer()

    @app.command()
    @with_options(config=group)
    def bake(config: Oven) -> None: ...

    return CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output


def test_without_options_the_dataclass_has_its_defaults() -> None:
    assert built(Group(Oven)) == Oven()


def test_every_kind_of_field_is_read() -> None:
    arguments = ["--hours", "5", "--heat", "200", "--tins", "4,1-2", "--fan", "--label", "x"]
    loaves = ["--loaves", "oat", "--loaves", "corn"]
    assert built(Group(Oven), *arguments, *loaves) == Oven(
        5, 200.0, (1, 2, 4), ("oat", "corn"), True, "x"
    )


def test_zero_stands_for_none_where_none_is_possible() -> None:
    assert built(Group(Oven), "--heat", "0", "--hours", "0") == Oven(hours=0, heat=None)


def test_a_default_that_changes_in_the_dataclass_changes_the_command() -> None:
    group = Group(Later)
    assert built(group) == Later() and built(group).hours == 7
    assert "How long it rests. [default: 7]" in help_of(group)
    assert "Which tins." in help_of(group)  # of the dataclass that it extends


def test_help_is_the_docstring_up_to_its_first_blank_line() -> None:
    assert field_docs(Oven)["heat"] == "Degrees; 0 = cold."
    text = help_of(Group(Oven))
    assert "How long it bakes." in text and "[default: 3]" in text and "leaves out" not in text
    assert "[default: (1,2)]" in text and "Its [name]." in text


def test_a_flag_renames_limits_and_converts() -> None:
    flags = {
        "hours": Flag("--time", least=1),
        "label": Flag(kind=int, parse=lambda n: "x" * int(n or 0)),
    }
    group = Group(Oven, flags, without=("fan",))
    assert built(group, "--time", "2", "--label", "3") == Oven(hours=2, label="xxx")
    assert "--fan" not in help_of(group) and "x>=1" in help_of(group)


def test_a_parameter_of_the_command_takes_the_place_of_a_field() -> None:
    app = typer.Typer()

    @app.command()
    @with_options(config=Group(Oven))
    def bake(config: Oven, hours: Annotated[str, typer.Option(help="By name.")] = "few") -> None:
        assert (hours, config.hours) == ("many", 3)

    assert CliRunner().invoke(app, ["--hours", "many"], catch_exceptions=False).exit_code == 0


def test_numbers_are_sorted_and_each_once() -> None:
    assert whole_numbers("--n", "8, 1,2,8") == (1, 2, 8)
    assert whole_numbers("--n", "0-3,7") == (0, 1, 2, 3, 7)
    for text in ("1,", "a", "-1", "1.5", "3-1", "0-99999999999", "²"):
        with pytest.raises(ConfigError, match="--n"):
            whole_numbers("--n", text)


# -- the commands of the package -----------------------------------------------------------------


def options_of(*words: str) -> dict[str, Any]:
    """The options of a command, by the name of their field."""
    command: Any = typer.main.get_command(lore_app)
    for word in words:
        command = vars(command)["commands"][word]
    return {option.name: option for option in command.params}


def agree(options: dict[str, Any], group: Group) -> None:
    """Check that every field is an option with its default and its docstring."""
    docs = field_docs(group.config)
    for each in group.fields():
        flag, option = group.flags.get(each.name, Flag()), options[each.name]
        if flag.name:
            assert option.opts == flag.name.split()
        assert option.help.replace("\\[", "[").startswith(docs[each.name].rstrip(".")), each.name
        if isinstance(each.default, tuple):
            assert option.default is None
        elif each.default is not MISSING:
            assert option.default == each.default, each.name
        else:
            assert option.required


@pytest.mark.parametrize("group", [WRITE, LORA, LESSON], ids=lambda group: group.config.__name__)
def test_write_has_every_field_with_its_default_and_its_docstring(group: Group) -> None:
    own = ("rank", "lr")  # options of the command's own
    agree(options_of("write"), replace(group, without=(*group.without, *own)))


def test_serve_has_every_field_with_its_default_and_its_docstring() -> None:
    agree(options_of("serve"), SERVE)


@pytest.mark.parametrize("name", TASKS)
def test_a_benchmark_has_every_field_with_its_default_and_its_docstring(name: str) -> None:
    task = load(name)
    flags = {field: Flag(option) for field, option in task.flags.items()}
    group = Group(task.config, flags, without=("model",), fixed=task.fixed)  # type: ignore[arg-type]
    options = {option.name: option for option in command_of(name).params}
    agree(options, group)
    defaults = {each.name: each.default for each in fields(task.config)}  # type: ignore[arg-type]
    assert options["model"].default == defaults["model"]


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("--objective", "training.objectives.OBJECTIVES"),
        ("--schedule", "training.schedules.SCHEDULES"),
        ("--order", "models.batching.ORDERS"),
        ("--optimizer", "training.optimisers.OPTIMIZERS"),
        ("--view", "knowledge.views.VIEWS"),
        ("--preset", "training.config.PRESETS"),
        ("--method", "writers.methods.WRITERS"),
        ("merge --method", "merging.methods.METHODS"),
        ("export --to", "models.export.EXPORTERS"),
        ("serve --engine", "serve.upstream.ENGINES"),
    ],
)
def test_choices_are_the_keys_of_the_dict_that_the_code_calls(
    lore: Lore, monkeypatch: pytest.MonkeyPatch, option: str, place: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    module, _, name = f"lorewright.{place}".rpartition(".")
    keys = list(getattr(__import__(module, fromlist=[name]), name))
    assert set(dict_keys(f"lorewright.{place}")) <= set(keys)
    verb, _, option = option.rpartition(" ")
    lines = lore(verb or "write", "--help").out.splitlines()
    (line,) = [line for line in lines if re.match(rf"│[ *]*{option} ", line)]
    assert all(key in line for key in keys)


def test_help_loads_no_torch() -> None:
    code = "import sys; from lorewright.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: print('torch' in sys.modules, file=sys.stderr)"
    for arguments in (["--help"], ["write", "--help"], ["serve", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == "False"


def test_show_loads_no_numbers() -> None:
    stored = Path(__file__).parents[1] / "fixtures" / "folder-2026-11-28"
    code = "import sys; from lorewright.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: print(*{'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, "show", str(stored)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tide" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


def test_every_option_has_a_sentence() -> None:
    root = typer.main.get_command(lore_app)
    todo = [("lore", root)]
    while todo:
        name, command = todo.pop()
        todo += [(f"{name} {n}", c) for n, c in vars(command).get("commands", {}).items()]
        for parameter in command.params:
            text = vars(parameter).get("help")
            assert text and inspect.cleandoc(text), f"{name} {parameter.name}"
