"""The README of an adapter's folder: a model card for people and the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def readme(
    identity: str, base_id: str, rows: Sequence[tuple[str, str]], card: Mapping[str, Any]
) -> str:
    """Markdown with the rows given and those of the card; a base that cannot be a hub id is left
    out of the front matter.
    """
    front = ["library_name: peft", "pipeline_tag: text-generation", "tags: [lora, lorewright]"]
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base_id):
        front.insert(0, f"base_model: {json.dumps(base_id)}")
    table = "\n".join(f"| {key} | {value} |" for key, value in [*rows, *_flat(card)][:60])
    text = "A LoRA adapter that holds knowledge, written by Lorewright; more in `card.json`."
    lines = ["---", *front, "---", "", f"# Memory {identity}", "", text, "", "| | |", "|---|---|"]
    return "\n".join([*lines, table, ""])


def _flat(card: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Rows (dotted key, value) for the single values of a card; lists only by their length."""
    for key, value in sorted(card.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield f"{above}{key}", f"{len(value)} entries"
        else:
            text = " ".join(str(value).split()).replace("|", "\\|")
            yield f"{above}{key}", text if len(text) <= 120 else text[:117] + "..."
