"""The rules of CONTRIBUTING.md as tests: structure, manners, language, wheel, documentation.

Most read the syntax tree, so they hold for imports inside functions and under TYPE_CHECKING too. A
rule with an exception names it here and gives the reason.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.imports import (
    LAYER,
    PACKAGE,
    ROOT,
    Module,
    edges,
    imports,
    knots,
    modules,
    package_edges,
    upward,
)

MOST_ENTRIES = 18  # at the top of the package
NO_TORCH = (
    *("errors", "files", "knowledge.data", "knowledge.readers.read", "knowledge.lesson"),
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
PRIVATE_WORDS = re.compile(r"\b(found|asked|told|said|kept)\b")
MOST_PRIVATE_WORDS = 100  # lines of the package
# What is here for users and examples, and has no caller among our own programs.
FOR_USERS: set[str] = set()
PROGRAMS = ("benchmarks", "experiments", "pocket", "examples", "docs")
TESTS = sorted(
    path
    for folder in ("tests", "experiments")
    for path in (ROOT / folder).rglob("*.py")
    if path.name.startswith("test_") or folder == "tests"
)


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


# The structure


def test_the_top_has_few_entries_and_each_has_a_place() -> None:
    entries = {m.package for m in modules()}
    assert len(entries) <= MOST_ENTRIES
    assert not entries - LAYER.keys(), "give these a place in ORDER and ARCHITECTURE.md"


def test_imports_point_down() -> None:
    none_of([f"{name} imports {target}, line {line}" for name, target, line in upward()])


def test_there_are_no_import_knots_at_any_level() -> None:
    assert knots(edges()) == []
    assert knots(package_edges()) == []


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
    own = {  # a package named after an extra needs it as a whole
        package: {_distribution(line) for line in lines}
        for package, lines in project["optional-dependencies"].items()
    }
    complaints = []
    for module in modules():
        at_import = {node.lineno for node in module.tree.body}
        for name, line in imports(module):
            top = name.split(".")[0]
            if top not in free | extras:
                complaints.append(f"{where(module, line)} {top} is not in pyproject.toml")
            elif top not in free | own.get(module.package, set()) and line in at_import:
                complaints.append(
                    f"{where(module, line)} {top} is an extra: import it in a function"
                )
    none_of(complaints)


def test_the_reference_lists_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    missing = [name for name in project["optional-dependencies"] if f"`{name}`" not in page]
    assert not missing


def _distribution(requirement: str) -> str:
    name = re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].replace("-", "_")
    modules = {"markdown_it_py": "markdown_it", "python_pptx": "pptx", "beautifulsoup4": "bs4"}
    return modules.get(name, name)


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
        if not ast.get_docstring(module.tree):
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


# Seams, dead code, language


def test_every_dict_of_functions_is_called() -> None:
    """A registry that the code does not look into would let a new entry be ignored."""
    read = {
        ast.unparse(place).split(".")[-1]
        for module in modules()
        for node in ast.walk(module.tree)
        for place in _looked_into(node)
    }
    none_of(
        [
            f"{where(module, node.lineno)} {name} is looked into nowhere in the package"
            for module in modules()
            for node in module.tree.body
            for name in _dict_of_functions(node)
            if name not in read
        ]
    )


def test_contributing_names_the_dicts_of_the_seams() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`lorewright/([\w/]+)\.py`,\s+`([A-Z_]+)`", page)
    assert len(named) >= 10
    for path, name in named:
        module = importlib.import_module(f"lorewright.{path.replace('/', '.')}")
        assert vars(module).get(name), f"lorewright/{path}.py has no {name}"


def _looked_into(node: ast.AST) -> Iterator[ast.expr]:
    """Dicts that are indexed here, whose items are taken, that are passed on or the default."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        yield node.value
    if isinstance(node, ast.Attribute) and node.attr in ("get", "items", "values"):
        yield node.value
    if isinstance(node, ast.BoolOp):  # given, or the built-in ones
        yield from node.values
    names_only = ("tuple", "list", "sorted", "set", "len", "str", "join")
    if isinstance(node, ast.Call) and not ast.unparse(node.func).endswith(names_only):
        yield from node.args
    if isinstance(node, ast.Dict):  # unpacked into another one
        yield from (value for key, value in zip(node.keys, node.values, strict=True) if key is None)


def _dict_of_functions(node: ast.stmt) -> Iterator[str]:
    """The public name that this statement gives to a dict whose values are functions or classes."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, value = node.targets[0], node.value
    elif isinstance(node, ast.AnnAssign):
        target, value = node.target, node.value
    else:
        return
    if (
        isinstance(target, ast.Name)
        and not target.id.startswith("_")
        and isinstance(value, ast.Dict)
    ):
        callables = (ast.Name, ast.Attribute, ast.Lambda)
        if value.values and all(isinstance(each, callables) for each in value.values):
            yield target.id


def test_no_public_function_is_without_a_caller() -> None:
    """A function that only a test calls is unused."""
    used = set[str]()
    programs = [
        p for f in ("benchmarks", "experiments", "pocket", "examples", "docs") for p in _sources(f)
    ]
    for tree in (*(m.tree for m in modules()), *(parsed(p) for p in programs)):
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
    complaints = []
    for module in modules():
        for node in module.tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
            if public and not node.decorator_list and node.name not in used | FOR_USERS:
                complaints.append(f"{where(module, node.lineno)} {node.name} has no caller")
    none_of(complaints)


def _sources(folder: str) -> list[Path]:
    return [p for p in sorted((ROOT / folder).rglob("*.py")) if not p.name.startswith("test_")]


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_package_speaks_the_fields_language() -> None:
    """Verbs of speech that stood for variables, values and errors are gone but for plain prose."""
    lines = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRIVATE_WORDS.search(line)
    ]
    assert len(lines) <= MOST_PRIVATE_WORDS, "\n".join(lines)


def test_no_docstring_calls_a_module_a_room() -> None:
    none_of(
        [
            f"{where(module, getattr(node, 'lineno', 1))} {word.group()}"
            for module in modules()
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if (word := re.search(r"\b(rooms?|wing)\b", ast.get_docstring(node) or ""))
        ]
    )


# Tests


def test_no_test_imports_another_test_module() -> None:
    complaints = []
    for path in TESTS:
        for node in ast.walk(parsed(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            if any(part.startswith("test_") for name in names for part in name.split(".")[-1:]):
                complaints.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {names[0]}")
    none_of(complaints)


def test_no_test_patches_a_private_name() -> None:
    complaints = []
    for path in TESTS:
        for node in ast.walk(parsed(path)):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr")):
                continue
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            for text in texts[:1]:
                parts = str(text).split(".")
                if any(part.startswith("_") and not part.startswith("__") for part in parts):
                    complaints.append(f"{path.relative_to(ROOT)}:{node.lineno} patches {text}")
    none_of(complaints)


def test_tests_of_experiments_stand_beside_them() -> None:
    this = Path(__file__)
    mentioned = [p for p in TESTS if p.is_relative_to(ROOT / "tests") and p != this]
    none_of([str(p) for p in mentioned if '"experiments"' in p.read_text(encoding="utf-8")])


# ARCHITECTURE.md


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    """docs/draw_architecture.py."""
    return program(ROOT / "docs" / "draw_architecture.py")


def program(path: Path) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_architecture_has_the_packages_and_imports_of_the_code(draw: ModuleType) -> None:
    page = draw.PAGE.read_text(encoding="utf-8")
    assert draw.page(page) == page, "run `make house`"
    assert draw.PICTURE.read_text(encoding="utf-8") == draw.picture(), "run `make house`"


def test_architecture_walks_a_document_through_files_that_import_one_another() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\d\. `([\w/]+)\.py`", page, flags=re.MULTILINE)
    names = [step.replace("/", ".") for step in steps]
    assert 3 <= len(names) <= 8 and len(set(names)) == len(names), "at most eight, each once"
    assert not set(names) - edges().keys(), "these files do not exist"
    on_the_way = {*names, *(name for name in edges() if name.startswith("cli."))}
    used = {target for name in on_the_way for target in edges()[name]}
    used |= {target for name in used for target in edges()[name]}  # by way of a dict of methods
    assert not set(names) - used, "neither the door nor another file of the path imports these"


# What an import costs


@pytest.mark.parametrize("name", ["lorewright", "lorewright.cli.main"])
def test_import_is_light(name: str) -> None:
    code = f"import sys, {name}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    assert _python(["-c", code], cwd=ROOT, path=ROOT).split() == []


# The wheel


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network and unpacked where no other file of the project is."""
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
    complaints = []
    for words, command in _commands():
        help_text = f"{command.help or ''}\n{command.epilog or ''}"
        if not (command.help or "").strip():
            complaints.append(f"`{words}` has no help")
        elif not hasattr(command, "list_commands") and not re.search(rf"\b{words}\b", help_text):
            complaints.append(f"the help of `{words}` shows no example `{words} ...`")
    none_of(complaints)


def _commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words; groups may make theirs when they are wanted."""
    import typer

    from lorewright.cli.main import app

    pending: list[tuple[str, Any]] = [("lore", typer.main.get_command(app))]
    while pending:
        words, command = pending.pop()
        yield words, command
        if hasattr(command, "list_commands"):
            context = command.make_context(words, [], resilient_parsing=True)
            names = command.list_commands(context)
            pending += [(f"{words} {name}", command.get_command(context, name)) for name in names]


def console_commands(page: str) -> list[str]:
    """The `$ lore ...` lines of a page's console blocks, continuation lines joined."""
    blocks = re.findall(r"^```console\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return re.findall(r"^\$ (lore\b.*)$", joined, flags=re.MULTILINE)


def test_console_commands_are_read_and_joined() -> None:
    page = "```console\n$ lore a \\\n  --b\nout\n$ ls\n```\n```sh\n$ lore c\n```\n"
    assert [line.split() for line in console_commands(page)] == [["lore", "a", "--b"]]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_commands_of_a_page_run_in_order(page: str, tmp_path: Path) -> None:
    commands = console_commands((ROOT / page).read_text(encoding="utf-8"))
    assert commands, f"{page} shows no `$ lore ...` in a ```console block"
    lore = tmp_path / "bin" / "lore"
    lore.parent.mkdir()
    lore.write_text(f"#!{sys.executable}\nfrom lorewright.cli.main import main\n\nmain()\n")
    lore.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(ROOT / "examples", work / "examples")
    for command in commands:
        _run(["bash", "-c", command], cwd=work, path=ROOT, bin_path=lore.parent)


def test_commands_in_the_pages_exist_with_their_options() -> None:
    commands = dict(_commands())
    pages = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    complaints = []
    for page in pages:
        if page.name == "LOG.md":  # a record: commands as they were
            continue
        fences = re.findall(r"^```(?:sh|console)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
        for line in "\n".join(fences).replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["lore"]:
                complaints += [f"{page.name}: {line}: {why}" for why in _misused(words, commands)]
    none_of(complaints)


def _misused(words: list[str], commands: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a command line: no such command, no such option."""
    named = "lore"
    rest = words[1:]
    while rest and f"{named} {rest[0]}" in commands:
        named += f" {rest.pop(0)}"
    command = commands[named]
    if rest and named == "lore" and not rest[0].startswith("-") and rest[0] != "...":
        yield f"there is no `{rest[0]}`"
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    for word in rest:
        if word.startswith("--") and word.split("=")[0] not in known | {"--help"}:
            yield f"{named} has no {word}"


def test_python_in_the_pages_imports_what_exists() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [
        (page, block)
        for page in pages
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    ]
    assert blocks
    for page, block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lorewright"):
                module = importlib.import_module(node.module or "")
                missing = [a.name for a in node.names if not hasattr(module, a.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"


def test_names_of_the_package_in_the_pages_exist() -> None:
    pages = [p for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if p.name != "LOG.md"]
    complaints = []
    for page in pages:
        for name in re.findall(r"\blorewright(?:\.\w+)+", page.read_text(encoding="utf-8")):
            module, attributes = name, []
            known = {f"lorewright.{each}" for each in edges()}
            while module not in known and "." in module:
                module, _, last = module.rpartition(".")
                attributes.append(last)
            names = vars(importlib.import_module(module))
            if len(attributes) > 1 or not names.keys() >= set(attributes):
                complaints.append(f"{page.relative_to(ROOT)}: {name}")
    none_of(complaints)


def test_links_in_the_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *sorted((ROOT / "experiments").rglob("*.md"))]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    none_of(broken)


def test_pages_name_only_files_of_the_package_that_exist() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / f for f in ("README.md", "CONTRIBUTING.md"))]
    none_of(
        [
            f"{page.relative_to(ROOT)}: {name}"
            for page in pages
            for name in re.findall(
                r"(?<![\w/(])((?:lorewright|tests|benchmarks|pocket|examples|experiments)/[\w/.-]*\.\w+)",
                page.read_text(encoding="utf-8"),
            )
            if not (ROOT / name).exists()
        ]
    )


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
