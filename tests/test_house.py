"""The house rules of CONTRIBUTING.md, as tests: structure, manners, the wheel, the README.

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lorewright"

# A package imports from itself and from packages to its left; packages in one set are strangers.
ORDER = (
    {"errors"},
    {"files"},
    {"knowledge"},
    {"adapters"},
    {"models"},
    {"training"},
    {"writers"},
    {"recall"},
    {"merging", "routing", "law"},
    {"reports"},
    {"memory"},
    {"bench", "serve", "studio"},
    {"cli"},
)
LAYER = {package: depth for depth, packages in enumerate(ORDER) for package in packages}
MOST_ENTRIES = 18  # at the top of the package

NO_TORCH = (
    *("errors", "files", "knowledge.data", "knowledge.readers", "knowledge.lesson"),
    *("knowledge.teacher", "routing.index", "routing.lexicon", "recall.statistics"),
    *("law.law", "law.cells", "law.curves", "law.forecast", "memory.folder", "cli.main"),
)
ONLY_MODELS = {"transformers", "tokenizers"}
PRINTERS = {"cli", "reports"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "base", "core", "misc", "manager"}
MAX_FUNCTION_LINES = 80
MAX_LOOP_LINES = 150  # one function of training.loop: the loop, flat, in the order it happens
HEAVY = {"torch", "transformers", "scipy", "numpy", "matplotlib", "peft", "safetensors"}
# torch calls these by name; their meaning is torch's, and the class docstring says the rest.
TORCH_METHODS = {"forward", "extra_repr"}


@dataclass(frozen=True)
class Module:
    """One source file of the package, parsed."""

    path: Path
    name: str  # dotted, without the package: "bench.task"
    tree: ast.Module

    @property
    def package(self) -> str:
        """The entry at the top of the package that it belongs to."""
        return self.name.split(".")[0]


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package except its root."""
    listed = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            listed.append(Module(path, name, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(listed)


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that a module imports anywhere in it, with the line.

    Names are resolved: `from lorewright.files import store` is `lorewright.files`, and `from
    lorewright.training import loop` is `lorewright.training.loop`.
    """
    known = {f"lorewright.{m.name}" for m in modules()}
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
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in known else base), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((str(a.value), a.lineno) for a in node.args if isinstance(a, ast.Constant))


@cache
def edges() -> dict[str, dict[str, int]]:
    """For every module those of the package that it imports, each with a line."""
    known = {m.name for m in modules()}
    graph: dict[str, dict[str, int]] = {m.name: {} for m in modules()}
    for module in modules():
        for name, line in imports(module):
            target = name.removeprefix("lorewright.")
            if name.startswith("lorewright.") and target in known and target != module.name:
                graph[module.name].setdefault(target, line)
    return graph


def knots(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The sets of nodes that reach one another, each sorted: strongly connected components."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        todo, met = [start], set[str]()
        while todo:
            new = set(graph[todo.pop()]) - met
            met |= new
            todo += new
        reach[start] = met
    tied = [sorted(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]]
    return [list(each) for each in sorted({tuple(each) for each in tied})]


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


# The structure


def test_the_top_has_few_entries_and_each_has_a_place() -> None:
    entries = {m.package for m in modules()}
    assert len(entries) <= MOST_ENTRIES
    assert not entries - LAYER.keys(), "give these a place in ORDER and ARCHITECTURE.md"


def test_imports_point_down() -> None:
    complaints = []
    for module in modules():
        for target, line in edges()[module.name].items():
            other = target.split(".")[0]
            if other != module.package and LAYER[other] >= LAYER[module.package]:
                complaints.append(f"{where(module, line)} {module.package} imports {other}")
    none_of(complaints)


def test_there_are_no_import_knots_at_any_level() -> None:
    files = edges()
    assert knots(files) == []
    by_package: dict[str, set[str]] = {m.package: set() for m in modules()}
    for name, targets in files.items():
        here = name.split(".")[0]
        by_package[here] |= {t.split(".")[0] for t in targets} - {here}
    assert knots(by_package) == []


def test_a_knot_would_be_seen() -> None:
    assert knots({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_only_models_imports_transformers() -> None:
    none_of(
        [
            f"{where(module, line)} imports {name}; only models may"
            for module in modules()
            for name, line in imports(module)
            if name.split(".")[0] in ONLY_MODELS and module.package != "models"
        ]
    )


def test_what_needs_no_torch_loads_none() -> None:
    code = "import sys\n"
    for name in NO_TORCH:
        code += f"import lorewright.{name}\nassert 'torch' not in sys.modules, {name!r}\n"
    _python(["-c", code], cwd=ROOT, path=ROOT)


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


def test_functions_fit_a_screen() -> None:
    complaints = []
    for module in modules():
        loops = 1 if module.name == "training.loop" else 0
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
            if node.func.id == "print" and module.package not in PRINTERS:
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


def test_package_files_hold_a_docstring_and_nothing_else() -> None:
    code = [m.name for m in modules() if m.path.stem == "__init__" and len(m.tree.body) > 1]
    assert not code, f"move what these hold into files of their own: {code}"


def test_architecture_names_every_package() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing = sorted({m.package for m in modules() if f"`{m.package}`" not in page})
    assert not missing, f"ARCHITECTURE.md does not name {missing}"


# What an import costs


@pytest.mark.parametrize("name", ["lorewright", "lorewright.cli.main"])
def test_import_is_light(name: str) -> None:
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
    names = ["lorewright", *(f"lorewright.{m.name}" for m in modules())]
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

    cli = importlib.import_module("lorewright.cli.main")
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
    lore.write_text(f"#!{sys.executable}\nfrom lorewright.cli.main import main\n\nmain()\n")
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
