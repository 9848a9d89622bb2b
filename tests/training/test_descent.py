"""Claims about training tensors that are no adapter: resumed, stopped and refused as writes are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.writes import CONFIG, EXAMPLES, tiny
from torch import Tensor, nn

from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.models.model import Model
from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.descent import AdamW, Tuned, tune
from lorewright.training.watch import Watch

CONFIGURED = replace(CONFIG, lr=0.02, epochs=8)


@contextmanager
def offset(model: Model, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Adds an offset (V, D) to embeddings, by token."""
    handle = model.network.get_input_embeddings().register_forward_hook(
        lambda module, args, x: x + tensors["offset"][args[0]]
    )
    try:
        yield
    finally:
        handle.remove()


def tuned(model: Model, config: WriteConfig = CONFIGURED, **how: object) -> Tuned:
    start = {"offset": torch.zeros_like(model.network.get_input_embeddings().weight)}
    settings = {"mark": "offset", "watch": Watch(), **how}
    return tune(model, start, offset, EXAMPLES, config, **settings)  # type: ignore[arg-type]


def test_training_goes_on_where_it_stopped_and_ends_in_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorewright.training.checkpoint.CHECKPOINT_SECONDS", 0.0)
    model, config = tiny(), replace(CONFIGURED, order="curriculum", rest=0.9, margin=0.8)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(model, config, run=tmp_path, watch=Watch(epoch=stop))
    epochs: list[int] = []
    watch = Watch(epoch=lambda epoch: epochs.append(epoch.epoch))
    resumed, whole = tuned(model, config, run=tmp_path, watch=watch), tuned(model, config)
    assert epochs == list(range(1, len(whole.epochs) + 1)) and len(epochs) > 2
    assert torch.equal(resumed.tensors["offset"], whole.tensors["offset"])
    with pytest.raises(ConfigError, match="interrupted write of other examples, settings or base"):
        tuned(model, config, run=tmp_path, mark="another start")


def test_it_ends_when_all_is_recalled_or_the_budget_is_spent() -> None:
    model = tiny()
    assert tuned(model, replace(CONFIGURED, epochs=60)).reason == "recalled"
    brief = tuned(model, replace(CONFIGURED, epochs=1))
    assert (brief.reason, len(brief.epochs)) == ("budget", 1)


def test_an_objective_with_a_teacher_learns_from_it() -> None:
    """Contexts that hold the answer teach the base to give what it would give with them."""
    model = tiny()
    contexts = ["" for _ in EXAMPLES]
    config = replace(CONFIGURED, objective="distill", epochs=3)
    still = tuned(model, config, contexts=contexts).tensors["offset"]
    moved = tuned(model, config, contexts=[f"{e.prompt} {e.completion}" for e in EXAMPLES])
    assert still.abs().max() < moved.tensors["offset"].abs().max()


def test_numbers_that_are_none_any_more_end_it_with_a_reason() -> None:
    with pytest.raises(ModelError, match="lower lr"):
        tuned(tiny(), replace(CONFIGURED, lr=1e38))


def test_nothing_to_learn_is_refused() -> None:
    model = tiny()
    with pytest.raises(DataError, match="no examples"):
        tune(model, {}, offset, [], CONFIGURED, mark="", watch=Watch())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_its_steps_are_those_of_torch(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.arange(6.0)) for _ in range(2))
    adam = AdamW([ours], replace(CONFIGURED, weight_decay=decay, clip=1e6))
    torch_adam = torch.optim.AdamW([theirs], lr=0.1, weight_decay=decay)
    for _ in range(5):
        gradient = torch.randn(6, generator=generator)
        adam.step([gradient], 0.1)
        theirs.grad = gradient
        torch_adam.step()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
