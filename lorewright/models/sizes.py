"""How large a base is, from its config.json alone: no weight is read or allocated.

The network is built on torch's meta device, so every architecture that transformers knows is
counted exactly, and an adapter's targets are resolved as in a write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorewright.adapters.targets import Site, resolve_targets, survey
from lorewright.errors import DataError, LorewrightError, ModelError, first_line
from lorewright.files import read_object
from lorewright.models.catalogue import located

MOST_LAYERS = 1024
"""Of a config that is counted; more is no base but a mistake."""


KEPT_WIDTHS = 5
"""Hidden states a layer that a token leaves here besides what enters and leaves linear layers."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a base, and of what is adapted of it."""

    name: str
    n_linear: int
    """Weights in the linear layers of the text decoder, which a quantised base holds in 4 bits."""
    n_rest: int
    """Everything else: embeddings, head, norms, other towers."""
    n_layers: int
    width: int
    """Of the hidden states."""
    n_vocab: int
    n_inside: int
    """Values a token leaves inside one layer for the backward pass: what enters its linear layers
    and what comes out of them."""
    n_values: int
    """Parameters of an adapter on the targets at rank 1: rows and columns of its layers."""
    n_rows: int
    """Outputs of the adapted layers, each of which has a length under DoRA."""
    largest_layer: int
    """Weights of the largest adapted layer."""

    @property
    def n_parameters(self) -> int:
        """All of them."""
        return self.n_linear + self.n_rest

    @property
    def n_kept(self) -> int:
        """Values that a token leaves in all layers for a backward pass here."""
        return _n_kept(self.n_inside, self.width, self.n_layers)


def _n_kept(n_inside: int, width: int, n_layers: int) -> int:
    return (n_inside + KEPT_WIDTHS * width) * n_layers + 2 * n_inside


def n_kept_of(network: nn.Module) -> int:
    """Values that a token leaves in a network's layers for a backward pass."""
    sites, _ = survey(network)
    width = int(network.config.get_text_config().hidden_size)  # type: ignore[union-attr,operator]
    return _n_kept(_inside(sites, width), width, len({site.layer for site in sites}))


def _inside(sites: Sequence[Site], width: int) -> int:
    """Values a token leaves inside one layer: what enters its linear layers and leaves them."""
    first = [site for site in sites if site.layer == sites[0].layer]
    entering = {(site.projection.rsplit(".", 1)[0], site.n_in) for site in first}
    return sum(site.n_out for site in first) + sum(n_in for _, n_in in entering) + width


def sizes_of(place: str | Path, targets: Sequence[str] = ("all-linear",)) -> Sizes:
    """The sizes of a base by name, folder, hub name, or the path of a config.json.

    Raises ModelError or DataError for what is no base, TargetsNotFound.
    """
    path = Path(place)
    if path.suffix == ".json":
        about = read_object(path, "give the config.json of a base")
        return sizes_in(about, targets, name=path.parent.name or str(path))
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(located(str(place)), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the sizes of {str(place)!r} could not be read: {first_line(error)}. Give a name of "
            "lore models, a folder, a hub name, or a config.json."
        ) from error
    return _counted(config, targets, str(place))


def sizes_in(
    about: Mapping[str, Any], targets: Sequence[str] = ("all-linear",), *, name: str = "config.json"
) -> Sizes:
    """The sizes of a base from the content of its config.json. Raises as `sizes_of`."""
    from transformers import CONFIG_MAPPING, AutoConfig

    family = about.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        raise DataError(
            f"{name!r} is no config.json of a base: its model_type is {family!r}, a family that "
            "transformers does not know; give that of a base."
        )
    rest = {key: value for key, value in about.items() if key not in ("model_type", "auto_map")}
    try:
        config = AutoConfig.for_model(str(family), **rest)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the config.json of {name!r} is not as its family {family!r} has it: "
            f"{first_line(error)}; give the config.json of a base."
        ) from error
    return _counted(config, targets, name)


def _counted(config: Any, targets: Sequence[str], name: str) -> Sizes:
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    n_layers = int(text.to_dict().get("num_hidden_layers") or 0)
    if not 0 < n_layers <= MOST_LAYERS:
        raise DataError(f"{name} has {n_layers} layers; give the config.json of a base.")
    try:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except LorewrightError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} could not be counted: {first_line(error)}; give the config.json of a causal "
            "language model."
        ) from error
    sites, _ = survey(network)
    if not sites:
        raise ModelError(f"{name} has no linear layers in numbered layers; nothing can be adapted.")
    adapted = resolve_targets(network, targets).sites
    n_linear = sum(site.n_in * site.n_out for site in sites)
    return Sizes(
        name,
        n_linear,
        sum(parameter.numel() for parameter in network.parameters()) - n_linear,
        n_layers,
        int(text.hidden_size),
        int(text.vocab_size),
        _inside(sites, int(text.hidden_size)),
        sum(site.n_in + site.n_out for site in adapted),
        sum(site.n_out for site in adapted),
        max(site.n_in * site.n_out for site in adapted),
    )
