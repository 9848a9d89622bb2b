"""A decoder's layers one at a time, and what modules receive and give.

    layers = Layers(model)
    hidden_BTD = layers.entering(ids_BT)
    hidden_BTD = layers.run(0, ids_BT, hidden_BTD)

The network itself hands every layer its masks and positions; layers below the one that is run are
passed by, those above are not reached. This room knows a Model and its layers. It knows nothing of
what is done with the states, nor of adapters.

Shape letters: B row, T token, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorewright.errors import ModelError
from lorewright.models.model import Model
from lorewright.training.trunk import decoder_layers


@contextmanager
def tapping(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What these modules receive and give inside, by name, in the order of their calls."""
    tap: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            tap[name] = (args[0], output)

        return hook

    handles = [network.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):
    """The pass has come to where it was to end."""


class Layers:
    """A network's decoder layers, to be run one at a time on hidden states (B, T, D).

    Raises ModelError when the network does not have one plain list of them.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.layers = decoder_layers(model.network)
        self._tuples = [False] * len(self.layers)
        """Whether a layer returns its states in a tuple, as some families do."""

    def __len__(self) -> int:
        return len(self.layers)

    def entering(self, ids_BT: Tensor) -> Tensor:
        """What enters the first layer."""
        found: list[Tensor] = []

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        handle = self.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self._pass(ids_BT, 0)
        finally:
            handle.remove()
        return found[0].detach()

    def run(
        self, at: int, ids_BT: Tensor, hidden_BTD: Tensor, *, until: nn.Module | None = None
    ) -> Tensor:
        """What layer `at`, or its module `until`, makes of the states that are given for its own.

        The pass ends there.
        """
        layer, found = self.layers[at], []

        def feed(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (hidden_BTD, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden_BTD}

        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module is layer:
                self._tuples[at] = isinstance(output, tuple)
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handles = [
            layer.register_forward_pre_hook(feed, with_kwargs=True),
            (until or layer).register_forward_hook(end),
        ]
        try:
            with self._passing_by(at):
                self._pass(ids_BT, at)
        finally:
            for handle in handles:
                handle.remove()
        out_BTD: Tensor = found[0]
        return out_BTD

    def last(self, ids_BT: Tensor) -> Tensor:
        """What the last layer gives when the network is run as a whole."""
        found: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        handle = self.layers[-1].register_forward_hook(note)
        try:
            self.model.network(input_ids=ids_BT, use_cache=False)
        finally:
            handle.remove()
        return found[0]

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

    def _pass(self, ids_BT: Tensor, at: int) -> None:
        try:
            self.model.network(input_ids=ids_BT, use_cache=False)
        except _Reached:
            return
        raise ModelError(f"layer {at} of {self.model.name!r} was not reached.")

    @contextmanager
    def _passing_by(self, at: int) -> Iterator[None]:
        """Inside, the layers below `at` hand on what they are given."""

        def past(tuples: bool) -> Any:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                return (hidden_states,) if tuples else hidden_states

            return forward

        below = self.layers[:at]
        own = [vars(layer).get("forward") for layer in below]  # another library's wrapper, if any
        for layer, tuples in zip(below, self._tuples, strict=False):
            layer.forward = past(tuples)
        try:
            yield
        finally:
            for layer, wrapper in zip(below, own, strict=True):
                if wrapper is None:
                    del layer.forward
                else:
                    layer.forward = wrapper
