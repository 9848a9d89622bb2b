"""Draw who imports whom, write the packages' table into ARCHITECTURE.md, and count.

    make house        # or: python docs/draw_architecture.py

Prints files, edges, knots and upward edges. tests/test_house.py compares picture and table with the
code.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.imports import LAYER, edges, knots, modules, package_edges, upward  # noqa: E402

PAGE = ROOT / "ARCHITECTURE.md"
PICTURE = ROOT / "docs" / "assets" / "architecture.svg"
MARKS = ("<!-- packages: written by make house -->", "<!-- end of packages -->")

CELL, LEFT, TOP = 30, 108, 104
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2933; }
  .note { font-size: 12px; fill: #52606d; }
  .row { fill: #f3f6f9; } .self { fill: #c9d4df; } .down { fill: #2f6fab; } .up { fill: #c0392b; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7eb; } .note { fill: #9aa5b1; } .row { fill: #1f2a35; } .self { fill: #3e4c59; }
    .down { fill: #6aa9e9; } .page { fill: #12181f; }
  }
  @media (prefers-color-scheme: light) { .page { fill: #ffffff; } }
"""


def order() -> list[str]:
    """Packages from the top layer to the lowest."""
    return sorted(package_edges(), key=lambda name: (-LAYER[name], name))


def picture() -> str:
    """The matrix of imports as SVG: a row imports from the columns that are marked."""
    names, graph = order(), package_edges()
    width = LEFT + CELL * len(names) + 16
    height = TOP + CELL * len(names) + 44
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Imports between packages: all marks lie to the right of the diagonal</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, name in enumerate(names):
        x, y = LEFT + CELL * i, TOP + CELL * i
        if i % 2 == 0:
            lines.append(f'<rect class="row" x="0" y="{y}" width="{width - 16}" height="{CELL}"/>')
        lines.append(f'<text x="{LEFT - 10}" y="{y + 20}" text-anchor="end">{name}</text>')
        lines.append(f'<text transform="translate({x + 19} {TOP - 8}) rotate(-60)">{name}</text>')
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            kind = "self" if i == j else "down" if LAYER[other] < LAYER[name] else "up"
            if i == j or other in graph[name]:
                x, y = LEFT + CELL * j + 7, TOP + CELL * i + 7
                tag = "" if i == j else f' data-edge="{name} {other}"'
                lines.append(
                    f'<rect class="{kind}"{tag} x="{x}" y="{y}" width="16" height="16" rx="3"/>'
                )
    note = (
        "A row imports from the columns marked in it. A mark left of the diagonal would point up."
    )
    lines.append(f'<text class="note" x="12" y="{height - 16}">{note}</text>')
    return "\n".join([*lines, "</svg>", ""])


def table() -> str:
    """Packages, what each knows, and from which packages it imports, as Markdown."""
    knows = {
        m.name: re.sub(r"\s+", " ", (ast.get_docstring(m.tree) or "").split("\n\n")[0])
        for m in modules()
        if m.name == m.package
    }
    rows = ["| package | knows | imports from |", "|---|---|---|"]
    for name in order():
        below = sorted(package_edges()[name], key=lambda other: (-LAYER[other], other))
        rows.append(f"| `{name}` | {knows.get(name, '')} | {', '.join(below) or '–'} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """ARCHITECTURE.md with its table as the code has it."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{after}"


def main() -> None:
    """Write both, print the counts."""
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    tied = knots(edges()) + knots(package_edges())
    for knot in tied:
        print("knot:", ", ".join(knot))
    for name, target, line in upward():
        print(f"upward: {name} imports {target}, line {line}")
    n_edges = sum(len(targets) for targets in edges().values())
    print(f"files {len(edges())}  edges {n_edges}  knots {len(tied)}  upward edges {len(upward())}")
    print(f"code lines {sum(code_lines(m.path.read_text('utf-8')) for m in modules())}")


def code_lines(text: str) -> int:
    """Lines with code on them: neither blank, nor comment, nor docstring."""
    prose = set[int]()
    for node in ast.walk(ast.parse(text)):
        text_alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text_alone and isinstance(node.value.value, str):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    held = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*skipped, tokenize.ENDMARKER):
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - prose)


if __name__ == "__main__":
    main()
