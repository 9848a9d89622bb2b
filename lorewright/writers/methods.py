"""The built-in writers and the kinds of state they leave, by name.

A new way of writing is one file with a `Writer` and an entry in WRITERS; a new kind of state is a
`State` and its loader in STATES.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lorewright.errors import AdapterError, ConfigError
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.writers import adapter, delta, tensors
from lorewright.writers.bottleneck import Bottleneck
from lorewright.writers.delta import Delta
from lorewright.writers.doc2lora import DocToLora
from lorewright.writers.full import Full
from lorewright.writers.gradient import Gradient
from lorewright.writers.gradmem import GradMem
from lorewright.writers.ia3 import IA3
from lorewright.writers.in_place import InPlace
from lorewright.writers.in_place_kit import InPlaceKit
from lorewright.writers.learned import Learned, Method
from lorewright.writers.perk import Perk
from lorewright.writers.prefix import Prefix, Prompt
from lorewright.writers.tensors import CARD_FILE, KIND, Tuning
from lorewright.writers.writer import State, Writer

PROMPT, PREFIX, FACTORS, NETWORKS = Prompt(), Prefix(), IA3(), Bottleneck()
LEARNED: dict[str, Method] = {
    "perk": Perk(),
    "gradmem": GradMem(),
    "delta": Delta(),
    "in-place-kit": InPlaceKit(),
    "doc2lora": DocToLora(),
}
"""Methods that need a kit, which `lorewright.kits` trains once for a base; all are writers."""
WRITERS: dict[str, Callable[[WriteConfig], Writer]] = {
    "gradient": Gradient,
    "full": Full,
    "in-place": InPlace,
    "prompt": lambda config: Tuning(PROMPT, config),
    "prefix": lambda config: Tuning(PREFIX, config),
    "ia3": lambda config: Tuning(FACTORS, config),
    "bottleneck": lambda config: Tuning(NETWORKS, config),
    "perk": lambda config: Learned(LEARNED["perk"], config),
    "gradmem": lambda config: Learned(LEARNED["gradmem"], config),
    "delta": lambda config: Learned(LEARNED["delta"], config),
    "in-place-kit": lambda config: Learned(LEARNED["in-place-kit"], config),
    "doc2lora": lambda config: Learned(LEARNED["doc2lora"], config),
}
"""By `Writer.name`; each takes of the settings what it has a use for."""
RATES = {
    "full": 1 / 3,
    "in-place": 1 / 300,
    "prompt": 30.0,
    "prefix": 60.0,
    "ia3": 15.0,
    "bottleneck": 8.0,
}
"""The rate of a method over that which suits an adapter, where it is another one.

Measured on the embedded base, on sources of four facts that are in no table (LOG, 2026-11-30): near
the least rate at which all is recalled as trained, for higher ones cost what the base could do. For
`in-place` one that does not harm its text.
"""
STATES: dict[str, Callable[[Path], State]] = {
    "adapter": adapter.load,
    "prompt": partial(tensors.load, form=PROMPT),
    "prefix": partial(tensors.load, form=PREFIX),
    "ia3": partial(tensors.load, form=FACTORS),
    "bottleneck": partial(tensors.load, form=NETWORKS),
    "delta": partial(tensors.load, form=delta.FORM),
}
"""By `State.kind`: reads the folder that `State.save` wrote."""


def writer_of(name: str, config: WriteConfig) -> Writer:
    """A built-in writer with settings. Raises ConfigError with the names there are."""
    if name not in WRITERS:
        raise ConfigError(f"method {name!r} is unknown; use one of {', '.join(sorted(WRITERS))}.")
    return WRITERS[name](config)


def usual_lr(method: str, model: Model) -> float:
    """The rate of a method on a base of this width, where none is given."""
    return suggested_lr(model) * RATES.get(method, 1.0)


def load_state(folder: Path) -> State:
    """Read a state's folder, whatever its kind.

    Raises AdapterError for a kind that is unknown, or what the kind's loader raises.
    """
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        kind = card.get(KIND, adapter.AdapterState.kind)
    except (OSError, ValueError, AttributeError):  # the loader of adapters explains
        kind = adapter.AdapterState.kind
    if kind not in STATES:
        raise AdapterError(
            f"{folder} holds a state of kind {kind!r}; this version reads {', '.join(STATES)}."
        )
    return STATES[kind](folder)
