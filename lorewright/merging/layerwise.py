"""A decoder's layers one at a time, and the inputs and outputs of modules.

    layers = Layers(model)
    start = layers.enter(ids_BT)
    hidden_BTD = layers.run(0, start, start.hidden_BTD)

The network itself makes every layer's masks and positions: a pass over the tokens records with what
arguments it calls each layer, and a layer that is run is called with the same.

Shape letters: B row, T token, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorewright.adapters.targets import layer_list
from lorewright.errors import ModelError
from lorewright.models.model import Model


@contextmanager
def tapping(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Inputs and outputs of these modules inside, by name, in the order of their calls."""
    tap: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            tap[name] = (args[0], output)

        return hook

    modules = ((name, network.get_submodule(name)) for name in names)
    with _hooked([module.register_forward_hook(note(name)) for name, module in modules]):
        yield tap


@contextmanager
def _hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):
    """The pass has come to where it was to end."""


@dataclass(frozen=True, eq=False)
class Start:
    """What enters the first layer, and how the network calls every layer on these tokens."""

    hidden_BTD: Tensor
    calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
    """Per layer the arguments and keywords beside the hidden states."""


class Layers:
    """A network's decoder layers, to be run one at a time on hidden states (B, T, D).

    Raises ModelError when the network does not have one plain list of them.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.layers = list(layer_list(model.network))

    def __len__(self) -> int:
        return len(self.layers)

    def enter(self, ids_BT: Tensor) -> Start:
        """Record how the network calls its layers on these tokens; one whole pass."""
        hidden: list[Tensor] = []
        calls: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            hidden.append(args[0] if args else kwargs["hidden_states"])
            calls.append((args[1:], rest))

        hooks = [each.register_forward_pre_hook(record, with_kwargs=True) for each in self.layers]
        with _hooked(hooks):
            self.model.network(input_ids=ids_BT, use_cache=False)
        if len(calls) != len(self.layers):
            raise ModelError(
                f"{self.model.name!r} has {len(self.layers)} layers and called {len(calls)} in a "
                "pass; they cannot be run one at a time."
            )
        return Start(hidden[0].detach(), calls)

    def run(
        self, at: int, start: Start, hidden_BTD: Tensor, *, until: nn.Module | None = None
    ) -> Tensor:
        """The output of layer `at`, or of its module `until`, where the call then ends."""
        args, kwargs = start.calls[at]
        if until is None:
            return _states(self.layers[at](hidden_BTD, *args, **kwargs))
        outputs: list[Tensor] = []

        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            outputs.append(_states(output))
            raise _Reached

        with _hooked([until.register_forward_hook(end)]):
            try:
                self.layers[at](hidden_BTD, *args, **kwargs)
            except _Reached:
                return outputs[0]
        raise ModelError(f"a module of layer {at} of {self.model.name!r} was not reached.")

    def last(self, ids_BT: Tensor) -> Tensor:
        """The output of the last layer when the network is run as a whole."""
        outputs: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            outputs.append(_states(output))

        with _hooked([self.layers[-1].register_forward_hook(note)]):
            self.model.network(input_ids=ids_BT, use_cache=False)
        return outputs[0]

    @torch.no_grad()
    def check(self, ids_BT: Tensor, last_BTD: Tensor, real_BT: Tensor) -> None:
        """Raise ModelError unless the whole network's last layer gives these states.

        Where `real_BT` is false nothing is compared.
        """
        whole_MD = self.last(ids_BT)[real_BT]
        off = (whole_MD - last_BTD[real_BT]).abs().max().item()
        # Batches of another shape round differently, by more the coarser the base's numbers are.
        noise = max(1e-3, 16 * torch.finfo(self.model.dtype).eps)
        if not off <= noise * max(1.0, whole_MD.abs().max().item()):
            raise ModelError(
                f"layers of {self.model.name!r} that are run one at a time differ from the whole "
                f"network by {off:.2g}; its layers hand on more than their states."
            )


def _states(output: Any) -> Tensor:
    """The hidden states, which layers of some families return in a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
