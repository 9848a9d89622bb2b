"""Gather what the site is built from: docs/, and pages made from the code.

    python docs/generate.py build/docs

Copies docs/*.md with their figures, and adds the command line (from the commands), the API (one page a
package, from its docstrings) and the pages of the experiments. So these cannot differ from the code.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lorewright"
EXPERIMENTS = ROOT / "experiments"


def main(folder: Path) -> None:
    """Write everything into `folder`, emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    pages = folder / "results" / "experiments"
    pages.mkdir()
    for page in experiments():
        name = page.parent.name
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"\]\(([\w-]+\.(?:svg|md))\)", rf"]({name}-\1)", text)
        (pages / f"{name}.md").write_text(text, encoding="utf-8")
        for beside in (*page.parent.glob("*.svg"), *page.parent.glob("*.md")):
            if beside != page:
                shutil.copy(beside, pages / f"{name}-{beside.name}")
    api = folder / "reference" / "api"
    api.mkdir()
    for name in packages():
        (api / f"{name}.md").write_text(api_page(name), encoding="utf-8")
    (folder / "reference" / "cli.md").write_text(cli_page(), encoding="utf-8")
    for page in folder.rglob("*.md"):
        page.write_text(unbroken(page.read_text(encoding="utf-8")), encoding="utf-8")
    missing = [page for page in _generated(folder) if page not in _nav()]
    if missing:
        sys.exit(f"mkdocs.yml does not list {', '.join(missing)}; add them to its nav.")


def _generated(folder: Path) -> list[str]:
    patterns = ("results/experiments/*.md", "results/studies/*.md", "reference/api/*.md")
    made = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [str(path.relative_to(folder)) for path in made]


def _nav() -> str:
    return (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def unbroken(text: str) -> str:
    """Intervals in tables do not break: [0.84, 0.95] has a space of fixed width."""
    row = re.compile(r"^\|.*\|$", re.MULTILINE)
    interval = re.compile(r"\[([-+\d.e]+), ([-+\d.e]+)\]")
    return row.sub(lambda line: interval.sub("[\\1,\u00a0\\2]", line[0]), text)


def experiments() -> list[Path]:
    """The page of each experiment."""
    return sorted(EXPERIMENTS.glob("*/README.md"))


def packages() -> list[str]:
    """The entries at the top of the package; the command line has a page of its own."""
    names = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    return sorted(name.removesuffix(".py") for name in names - {"__init__.py", "cli"})


def api_page(name: str) -> str:
    """One page for a package: what it knows, then every module with its public names."""
    lines = [f"# lorewright.{name}", ""]
    if (PACKAGE / f"{name}.py").exists():
        return "\n".join([*lines, f"::: lorewright.{name}", ""])
    lines += [f"::: lorewright.{name}", "    options:", "      members: []"]
    lines += ["      show_root_heading: false", "      show_root_toc_entry: false", ""]
    for path in sorted((PACKAGE / name).rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__":
            lines += [f"::: lorewright.{'.'.join(parts)}", ""]
    return "\n".join(lines)


def cli_page() -> str:
    """Every command with its help, examples, arguments and options, read from the commands."""
    import typer

    from lorewright.cli import main as cli

    root = typer.main.get_command(cli.app)
    lines = [
        "# Command line",
        "",
        "Results go to standard output, progress to standard error; `--json` prints one JSON object.",
        "[Exit codes](exit-codes.md) and [environment variables](environment.md) have pages of their own.",
        "",
    ]
    for words, command in commands("lore", root):
        if words != "lore":
            lines += [f"## {words}", "", *prose(command.help or ""), *parameters(command)]
    return "\n".join(lines)


def commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and those below it, in the order of the help."""
    yield words, command
    if hasattr(command, "list_commands"):
        context = command.make_context(words, [], resilient_parsing=True)
        for name in command.list_commands(context):
            yield from commands(f"{words} {name}", command.get_command(context, name))


def prose(text: str) -> list[str]:
    """Help as Markdown: lines that typer shows dimmed are examples."""
    examples = re.findall(r"\[dim\](.*?)\[/\]", text)
    text = re.sub(r"\[dim\].*?\[/\]", "", text).replace("\f", "").strip()
    lines = [re.sub(r"\[/?\w*\]", "", text), ""]
    return [*lines, "```sh", *examples, "```", ""] if examples else lines


def parameters(command: Any) -> list[str]:
    """Arguments and options as a table, without --help."""
    rows = []
    for one in command.params:
        if "--help" in one.opts:
            continue
        is_option = one.param_type_name == "option"
        names = ", ".join(
            f"`{name}`" for name in (one.opts if is_option else [one.metavar or one.name])
        )
        words = getattr(one, "show_default", None)
        default = f"`{words}`" if isinstance(words, str) else shown(one.default)
        default = "required" if one.required else default
        env = f" (`{one.envvar}`)" if getattr(one, "envvar", None) else ""
        text = re.sub(r"\s+", " ", getattr(one, "help", "") or "").replace("|", "\\|")
        rows.append(f"| {names} | {default} | {text}{env} |")
    return ["| | default | |", "|---|---|---|", *rows, ""] if rows else []


def shown(value: Any) -> str:
    """A default as the table shows it; nothing for what is off or empty."""
    if value is None or value is False or value in ("", (), []) or callable(value):
        return ""
    return f"`{os.fspath(value) if isinstance(value, Path) else value}`"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
