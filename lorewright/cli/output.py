"""What every command does with its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer


def print_json(obj: Mapping[str, Any]) -> None:
    """One object on stdout, as JSON."""
    typer.echo(json.dumps(obj))
