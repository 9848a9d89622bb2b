"""The package's modules, parsed, and who imports whom: what test_house and `make house` read.

Read from the syntax trees, so imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "lorewright"

ORDER = (
    {"errors"},
    {"files"},
    {"knowledge"},
    {"adapters"},
    {"models"},
    {"training"},
    {"writers"},
    {"recall"},
    {"merging", "routing", "law", "kits"},
    {"reports"},
    {"memory"},
    {"bench", "serve"},
    {"studio"},
    {"cli"},
)
"""A package imports from itself and from sets to its left; packages in one set are strangers."""
LAYER = {package: depth for depth, packages in enumerate(ORDER) for package in packages}


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
    parsed = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            parsed.append(Module(path, name, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(parsed)


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


@cache
def package_edges() -> dict[str, set[str]]:
    """For every package the others that it imports from."""
    graph: dict[str, set[str]] = {m.package: set() for m in modules()}
    for name, targets in edges().items():
        here = name.split(".")[0]
        graph[here] |= {target.split(".")[0] for target in targets} - {here}
    return graph


def upward() -> list[tuple[str, str, int]]:
    """Imports from a package that does not lie below: module, target, line."""
    return [
        (name, target, line)
        for name, targets in edges().items()
        for target, line in targets.items()
        if (here := name.split(".")[0]) != (there := target.split(".")[0])
        and LAYER[there] >= LAYER[here]
    ]


def knots(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The sets of nodes that reach one another, each sorted: strongly connected components."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        pending, reached = [start], set[str]()
        while pending:
            new = set(graph[pending.pop()]) - reached
            reached |= new
            pending += new
        reach[start] = reached
    tied = [sorted(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]]
    return [list(each) for each in sorted({tuple(each) for each in tied})]
