"""How memory.json of an older schema becomes one of the next: numbered functions, one a step.

A migration takes memory.json of its number and the folder, and returns memory.json of the number
after it. It changes no file: what it returns is written, beside a copy of what was there, by the
next writer. A migration is never edited once released, for folders of its number stay in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorewright.errors import DataError, StorageError

Migration = Callable[[dict[str, Any], Path], dict[str, Any]]
"""memory.json of one schema, and its folder, to memory.json of the next."""

SCHEMA = 2
"""The schema that is written."""
HEADLINE, RETAINED = "paraphrase", "retained"
ARMS = ("memory", "base")
DAMAGED = "its card is damaged or gone"


def migrate(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return memory.json as of SCHEMA; the folder stays as it is.

    Raises DataError for a schema that is not among those known.
    """
    original = content.get("schema")
    while content.get("schema") != SCHEMA:
        number = content.get("schema")
        step = MIGRATIONS.get(number) if type(number) is int else None
        if step is None:
            readable = ", ".join(map(str, [*MIGRATIONS, SCHEMA]))
            raise DataError(
                f"{folder / 'memory.json'} has schema {original!r}; this version reads {readable}; "
                "use a matching version of lorewright."
            )
        content = step(content, folder)
    return content


def brief(card: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a card that a list of memories shows, in the card's own shape.

    A card that is gone or damaged has no rank and says so, lest it hide the others. States of other
    kinds than adapters have no rank either, and their kind instead.
    """
    rank, reason = _within(card, "adapter", "lora", "rank"), card.get("reason")
    kind = card.get("kind", "adapter")
    if not isinstance(reason, str) or (kind == "adapter" and not isinstance(rank, int)):
        rank, reason = None, DAMAGED
    headline = _within(card, "report", "recall", HEADLINE)
    arms = headline if isinstance(headline, Mapping) else {}
    shown = {arm: dict(arms[arm]) for arm in ARMS if isinstance(arms.get(arm), Mapping)}
    recall: dict[str, Any] = {HEADLINE: shown} if shown else {}
    retained = _within(card, "report", "recall", RETAINED, "memory")
    if shown and isinstance(retained, Mapping):
        recall[RETAINED] = {"memory": dict(retained)}
    short = {"adapter": {"lora": {"rank": rank}}, "reason": reason, "report": {"recall": recall}}
    return short if kind == "adapter" else {"kind": kind, **short}


def _within(card: Mapping[str, Any], *keys: str) -> Any:
    value: Any = card
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _with_briefs(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Schema 1 to 2: every entry holds what a list shows of its card, so that lists read no cards.

    An entry whose card is gone or damaged gets an empty one: its memory is damaged, not the folder.
    """
    memories = {}
    for name, entry in content["memories"].items():
        path = folder / "adapters" / entry["adapter"] / "card.json"
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            card = {}
        except OSError as error:
            raise StorageError(f"{path} could not be read: {error}; check the path.") from error
        except (ValueError, RecursionError):
            card = {}
        memories[name] = {**entry, "card": brief(card if isinstance(card, dict) else {})}
    return {**content, "schema": 2, "memories": memories}


MIGRATIONS: dict[int, Migration] = {1: _with_briefs}
