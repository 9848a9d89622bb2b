"""The house rules of CONTRIBUTING.md, as tests: layers, sizes, manners, the wheel, the README.

Most read the syntax tree, so they hold for imports inside functions and under TYPE_CHECKING too.
They cover the modules that exist; a rule with an exception names it here and gives the reason.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lorewright"

# A room imports from its own layer or below. A wing (bench/, studio/) is one room.
LAYERS = (
    {"errors"},
    {
        *("data", "readers", "metrics", "cells", "curves", "forecast", "law", "lexicon"),
        *("migrations", "traces", "cache"),
    },
    {
        "views",
        "retrieve",
        "teacher",
        "targets",
        "dropout",
        "dora",
        "modelcard",
        "quantise",
        "fingerprint",
        "lora",
        "losses",
        "optim",
        "compiled",
        "batching",
        "checkpoint",
    },
    {"adapter", "recipe", "kernels", "fused"},
    {"model", "trunk", "layerwise", "distil", "progress", "questions", "whitening"},
    {"write", "recall", "merge", "imitate", "route"},
    {
        *("ask", "lesson", "calibration", "plan", "diagnose", "report", "figures", "tune"),
        *("scale", "shelf", "page", "runs", "contradictions", "snapshot", "evidence", "export"),
    },
    {"memory"},
    {"bench", "serve"},
    {"cli", "studio", "demo", "__main__"},
)
LAYER = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
STRANGERS = 5  # in this layer not even neighbours import one another
DATA_ROOMS = {"pocket"}  # files, not code: at most an __init__ with a docstring

NO_TORCH = {
    *("errors", "data", "readers", "metrics", "cells", "curves", "forecast", "law", "views"),
    *("lexicon", "retrieve"),
}
ONLY_MODEL = {"transformers", "tokenizers"}
PRINTERS = {"cli", "report"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "base", "core", "misc", "manager"}
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 80
MAX_LOOP_LINES = 150  # one function of write.py: the training loop, flat, in the order it happens
HEAVY = {"torch", "transformers", "scipy", "numpy", "matplotlib", "peft", "safetensors"}
# torch calls these by name; their meaning is torch's, and the class docstring says the rest.
TORCH_METHODS = {"forward", "extra_repr"}


@dataclass(frozen=True)
class Module:
    """One source file of the package, parsed."""

    path: Path
    name: str  # dotted, without the package: "bench.task"
    lines: int
    tree: ast.Module

    @property
    def room(self) -> str:
        """The top-level module or wing it belongs to."""
        return self.name.split(".")[0]


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package except its empty root."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        source = path.read_text(encoding="utf-8")
        if name:
            found.append(Module(path, name, source.count("\n"), ast.parse(source, str(path))))
    return tuple(found)


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Absolute dotted names a module imports anywhere in it, with the line."""
    inside = module.name.split(".")
    package = inside if module.path.stem == "__init__" else inside[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["lorewright", *package][: len(package) + 2 - node.level]
                base = ".".join([*above, base]).rstrip(".")
            if base == "lorewright":  # from lorewright import data: the names are the modules
                yield from ((f"lorewright.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield base, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((str(a.value), a.lineno) for a in node.args if isinstance(a, ast.Constant))


def rooms_imported(module: Module) -> Iterator[tuple[str, int]]:
    """The rooms of this house that a module imports, other than its own."""
    for name, line in imports(module):
        if name.startswith("lorewright."):
            room = name.split(".")[1]
            if room != module.room and room != "__version__":
                yield room, line


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, nested ones and methods included."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def where(module: Module, line: int) -> str:
    """A place a terminal can open."""
    return f"{module.path.relative_to(ROOT)}:{line}"


def none_of(complaints: list[str]) -> None:
    """Fail with every complaint, not only the first."""
    assert not complaints, "\n" + "\n".join(complaints)


def needs(path: Path) -> None:
    """Skip while a file of the plan is not written yet."""
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT)} does not exist yet")


# Layers


def test_every_module_has_a_place_in_the_layers() -> None:
    none_of(
        [
            f"{where(m, 1)} is in no layer: give {m.room!r} a place in LAYERS and ARCHITECTURE.md"
            for m in modules()
            if m.room not in LAYER and m.room not in DATA_ROOMS
        ]
    )


def test_imports_point_down_and_layer_five_are_strangers() -> None:
    complaints = []
    for module in modules():
        here = LAYER.get(module.room, -1)
        for room, line in rooms_imported(module):
            there = LAYER.get(room, -1 if room in DATA_ROOMS else len(LAYERS))
            if there > here or (there == here == STRANGERS):
                complaints.append(
                    f"{where(module, line)} {module.room} (layer {here}) imports {room} ({there})"
                )
    none_of(complaints)


def test_there_are_no_import_knots() -> None:
    known = {m.name for m in modules()}
    edges: dict[str, set[str]] = {m.name: set() for m in modules()}
    for module in modules():
        for name, _ in imports(module):
            target = name.removeprefix("lorewright.")
            if name.startswith("lorewright.") and target in known and target != module.name:
                edges[module.name].add(target)
    while leaves := {name for name, out in edges.items() if not out & edges.keys()}:
        edges = {name: out for name, out in edges.items() if name not in leaves}
    assert not edges, f"these modules import one another in a circle: {sorted(edges)}"


def test_only_model_imports_transformers_and_the_lower_rooms_know_no_torch() -> None:
    complaints = []
    for module in modules():
        for name, line in imports(module):
            top = name.split(".")[0]
            if top in ONLY_MODEL and module.room != "model":
                complaints.append(f"{where(module, line)} imports {top}; only model may")
            if top == "torch" and module.room in NO_TORCH:
                complaints.append(f"{where(module, line)} {module.room} knows no torch")
    none_of(complaints)


def test_every_import_is_declared_and_optional_ones_stay_inside_functions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = {_distribution(line) for line in project["dependencies"]}
    extras = {_distribution(d) for ds in project["optional-dependencies"].values() for d in ds}
    free = core | sys.stdlib_module_names | {"lorewright"}
    complaints = []
    for module in modules():
        at_import = {node.lineno for node in module.tree.body}
        for name, line in imports(module):
            top = name.split(".")[0]
            if top not in free | extras:
                complaints.append(f"{where(module, line)} {top} is not in pyproject.toml")
            elif top not in free and line in at_import:
                complaints.append(
                    f"{where(module, line)} {top} is an extra: import it in a function"
                )
    none_of(complaints)


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].replace("-", "_")


# Sizes, names, manners


def test_modules_and_functions_fit_their_limits() -> None:
    complaints = []
    for module in modules():
        if module.lines > MAX_MODULE_LINES:
            complaints.append(f"{where(module, 1)} has {module.lines} lines of {MAX_MODULE_LINES}")
        loops = 1 if module.room == "write" else 0
        for node in functions(module):
            n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if n_lines <= MAX_FUNCTION_LINES:
                continue
            if loops and n_lines <= MAX_LOOP_LINES:
                loops -= 1
                continue
            complaints.append(f"{where(module, node.lineno)} {node.name} has {n_lines} lines")
    none_of(complaints)


def test_modules_are_named_after_a_concept() -> None:
    bad = [str(m.path.relative_to(ROOT)) for m in modules() if m.path.stem in FORBIDDEN_NAMES]
    assert not bad, f"name these after what they hold: {bad}"


def test_nobody_prints_swallows_or_defaults_in_silence() -> None:
    complaints = []
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                complaints.append(f"{where(module, node.lineno)} bare except")
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id == "print" and module.room not in PRINTERS:
                complaints.append(f"{where(module, node.lineno)} print outside cli and report")
            literal = len(node.args) == 3 and isinstance(node.args[1], ast.Constant)
            if node.func.id == "getattr" and literal:
                complaints.append(f"{where(module, node.lineno)} getattr(x, 'literal', default)")
    none_of(complaints)


def test_every_module_and_public_name_has_a_docstring() -> None:
    complaints = []
    for module in modules():
        if ast.get_docstring(module.tree) is None:
            complaints.append(f"{where(module, 1)} has no module docstring")
        for node in _public(module.tree.body):
            if ast.get_docstring(node) is None:
                complaints.append(f"{where(module, node.lineno)} {node.name} has no docstring")
    none_of(complaints)


def _public(
    body: list[ast.stmt],
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or node.name in TORCH_METHODS:
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body)


def test_the_root_holds_the_version_and_nothing_else() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    names = [ast.unparse(node) for node in tree.body[1:]]
    assert len(names) == 1 and names[0].startswith("__version__ = "), names


def test_data_rooms_hold_no_code() -> None:
    code = [m.name for m in modules() if m.room in DATA_ROOMS and len(m.tree.body) > 1]
    assert not code, f"these are for data files: {code}"


def test_architecture_names_every_room() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing = sorted({m.room for m in modules() if f"`{m.room}`" not in page} - {"__main__"})
    assert not missing, f"ARCHITECTURE.md does not name {missing}"


# What an import costs


@pytest.mark.parametrize("name", ["lorewright", "lorewright.cli"])
def test_import_is_light(name: str) -> None:
    needs(PACKAGE / "cli" if name.endswith("cli") else PACKAGE)
    code = f"import sys, {name}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    assert _python(["-c", code], cwd=ROOT, path=ROOT).split() == []


# The wheel


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network and unpacked where no other file of the project is."""
    needs(ROOT / "README.md")
    folder = tmp_path_factory.mktemp("wheel")
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    _python([*pip, "wheel", str(ROOT), *offline, "--no-build-isolation", "-w", "."], cwd=folder)
    (wheel,) = folder.glob("lorewright-*.whl")
    _python([*pip, "install", *offline, "--target", "site", str(wheel)], cwd=folder)
    return folder / "site"


def test_wheel_carries_every_file_of_the_package(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        every = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        return {str(p) for p in every if "__pycache__" not in p.parts}

    examples = files(PACKAGE.parent / "examples")  # what `lore demo` writes into a memory
    carried = {f"examples/{name}" for name in examples}
    assert files(PACKAGE) | carried == files(installed / "lorewright")


@pytest.mark.slow
def test_every_module_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    names = ["lorewright", *(f"lorewright.{m.name}" for m in modules() if m.name != "__main__")]
    code = (
        "import importlib\n"
        f"for name in {names!r}:\n"
        "    module = importlib.import_module(name)\n"
        f"    assert (module.__file__ or '').startswith({str(installed)!r}), module.__file__\n"
    )
    _python(["-c", code], cwd=tmp_path, path=installed)


# The command line and the README


def test_every_command_has_help_and_an_example() -> None:
    needs(PACKAGE / "cli")
    complaints = []
    for words, command in _commands():
        help_text = f"{command.help or ''}\n{command.epilog or ''}"
        if not (command.help or "").strip():
            complaints.append(f"`{words}` has no help")
        elif not hasattr(command, "commands") and not re.search(rf"\b{words}\b", help_text):
            complaints.append(f"the help of `{words}` shows no example `{words} ...`")
    none_of(complaints)


def _commands() -> Iterator[tuple[str, Any]]:
    import typer

    cli = importlib.import_module("lorewright.cli")
    apps = [value for value in vars(cli).values() if isinstance(value, typer.Typer)]
    assert apps, "lorewright.cli holds no typer.Typer"
    trees = [typer.main.get_command(app) for app in apps]
    root = max(trees, key=lambda tree: len(vars(tree).get("commands", ())))
    todo: list[tuple[str, Any]] = [("lore", root)]
    while todo:
        words, command = todo.pop()
        yield words, command
        children = vars(command).get("commands", {})
        todo.extend((f"{words} {name}", child) for name, child in children.items())


def readme_commands(page: str) -> list[str]:
    """The `$ lore ...` lines of a page's console blocks, continuation lines joined."""
    blocks = re.findall(r"^```console\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return re.findall(r"^\$ (lore\b.*)$", joined, flags=re.MULTILINE)


def test_readme_commands_are_found_and_joined() -> None:
    page = "```console\n$ lore a \\\n  --b\nout\n$ ls\n```\n```sh\n$ lore c\n```\n"
    assert [line.split() for line in readme_commands(page)] == [["lore", "a", "--b"]]


@pytest.mark.slow
def test_readme_commands_run_in_order(tmp_path: Path) -> None:
    needs(ROOT / "README.md")
    commands = readme_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert commands, "README.md shows no `$ lore ...` in a ```console block"
    lore = tmp_path / "bin" / "lore"
    lore.parent.mkdir()
    lore.write_text(f"#!{sys.executable}\nfrom lorewright.cli import main\n\nmain()\n")
    lore.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    if (ROOT / "examples").exists():
        shutil.copytree(ROOT / "examples", work / "examples")
    for command in commands:
        _run(["bash", "-c", command], cwd=work, path=ROOT, bin_path=lore.parent)


def _python(arguments: list[str], *, cwd: Path, path: Path | None = None) -> str:
    return _run([sys.executable, *arguments], cwd=cwd, path=path)


def _run(
    arguments: list[str], *, cwd: Path, path: Path | None = None, bin_path: Path | None = None
) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    if bin_path is not None:
        env["PATH"] = f"{bin_path}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    shown = " ".join(arguments)[-300:]
    assert done.returncode == 0, f"{shown}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
