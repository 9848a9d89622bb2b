"""Claims about dropout: a share is hidden, alone as in a stack, in training and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stacks import JOBS, OTHERS, far, written
from support.writes import BRIEF, EXAMPLES, apart, interrupted, same_adapter, tiny
from torch import Tensor

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.dropout import Masks, Share
from lorewright.adapters.lora import attach
from lorewright.knowledge.data import Document
from lorewright.memory.memory import Memory
from lorewright.models.backends.network import Transformers
from lorewright.models.model import Model
from lorewright.training.config import Job
from lorewright.training.filenames import CHECKPOINT_FILE
from lorewright.training.loop import write, write_all
from lorewright.training.objectives import StepOutcome, Uniform

DROPPED = replace(BRIEF, dropout=0.3)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def ones(n_rows: int, n_tokens: int, n_in: int = 64) -> Tensor:
    return torch.ones(n_rows, n_tokens, n_in)


# --- masks


def test_a_share_is_hidden_and_the_mean_is_kept() -> None:
    seen = Masks([Share(0.25, "0 0 0", (500, 400))], 2).hide(ones(2, 500), "q")
    real = torch.cat([seen[0], seen[1, :400]])
    assert set(real.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (real == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert real.mean().item() == pytest.approx(1, abs=0.02)


def test_padding_is_not_drawn_for() -> None:
    share = Share(0.5, "0 0 0", (7, 4))
    narrow = Masks([share], 2).hide(ones(2, 7), "q")
    wide = Masks([share], 3).hide(ones(3, 20), "q")
    assert torch.equal(wide[0, :7], narrow[0]) and torch.equal(wide[1, :4], narrow[1, :4])
    assert wide[0, 7:].min() == wide[2].min() == 1


def test_an_adapter_is_masked_alike_in_any_company() -> None:
    one, other, none = Share(0.5, "1 0 0", (5, 5)), Share(0.2, "2 0 0", (9,)), Share(0, "", (3,))
    alone = Masks([one], 2).hide(ones(2, 5), "q")
    among = Masks([none, other, one], 2).hide(ones(6, 9), "q")
    assert torch.equal(among[4:, :5], alone)
    assert among[:2].min() == 1


def test_flattened_tokens_are_masked_as_rows_are() -> None:
    masks = Masks([Share(0.5, "0 0 0", (5, 3))], 2)
    assert torch.equal(
        masks.hide(ones(2, 5).flatten(0, 1), "q"), masks.hide(ones(2, 5), "q").view(10, -1)
    )


def test_tokens_from_a_router_are_masked_however_many_come() -> None:
    masks = Masks([Share(0.5, "0 0 0", (5, 3))], 2)
    found = masks.hide(torch.ones(3, 64), "experts.0", routed=True)
    assert 0 < (found == 0).float().mean() < 1


def test_steps_modules_and_seeds_hide_different_things() -> None:
    found = [
        Masks([Share(0.5, mark, (8,))], 1).hide(ones(1, 8), name)
        for mark, name in (
            ("0 0 0", "q"),
            ("0 0 1", "q"),
            ("0 1 0", "q"),
            ("1 0 0", "q"),
            ("0 0 0", "k"),
        )
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_only_what_the_adapter_reads_is_hidden(model: Model) -> None:
    ids = torch.arange(3, 12)[None]
    masks = Masks([Share(0.9, "0 0 0", (9,))], 1)
    with attach(model.network, [LoraConfig(rank=2)]) as stack, torch.no_grad():
        plain = model.network(ids).logits
        with stack.binding.using(None, masks):
            untrained = model.network(ids).logits
        assert torch.equal(untrained, plain)  # B is zero, and W x is whole
        for layer in stack.modules.values():
            layer.B_NOR.fill_(0.1)
        trained = model.network(ids).logits
        with stack.binding.using(None, masks):
            assert not torch.equal(model.network(ids).logits, trained)
        assert torch.equal(model.network(ids).logits, trained)
        assert stack.binding.dropout is None


# --- writes


def test_same_seed_same_bytes_and_another_seed_others(model: Model) -> None:
    once = write(model, EXAMPLES, DROPPED)
    assert same_adapter(once, write(model, EXAMPLES, DROPPED))
    assert not same_adapter(once, write(model, EXAMPLES, replace(DROPPED, seed=1)))
    assert not same_adapter(once, write(model, EXAMPLES, BRIEF))


def test_without_dropout_a_write_is_the_same_bytes_as_before_there_was_any(model: Model) -> None:
    assert same_adapter(
        write(model, EXAMPLES, replace(BRIEF, dropout=0.0)), write(model, EXAMPLES, BRIEF)
    )


@pytest.mark.usefixtures("calm")
def test_with_dropout_written_together_equals_written_alone(model: Model) -> None:
    rates = (0.3, 0.1, 0.0)
    jobs = [
        replace(j, config=replace(j.config, dropout=r)) for j, r in zip(JOBS, rates, strict=True)
    ]
    for job, found in zip(jobs, write_all(model, jobs), strict=True):
        alone = write(model, job.examples, job.config)
        assert far(written(found), alone) < apart(model, job.config, len(job.examples))
        assert [e.loss_nats for e in written(found).epochs] == pytest.approx(
            [e.loss_nats for e in alone.epochs], rel=1e-4
        )


@pytest.mark.usefixtures("calm")
def test_one_without_dropout_is_not_touched_by_one_with(model: Model) -> None:
    """To the bit where both run in one backend: a pass with dropout is transformers' to run."""
    only = {"transformers": Transformers}
    model = Model(model.network, model.tokenizer, model.name, backends=only)
    jobs = [Job(EXAMPLES, BRIEF), Job(OTHERS, replace(DROPPED, seed=2))]
    plain = [jobs[0], Job(OTHERS, replace(BRIEF, seed=2))]
    a, b = write_all(model, jobs)[0], write_all(model, plain)[0]
    assert far(written(a), written(b)) == 0


@pytest.mark.parametrize("layers", [None, (1,)])
@pytest.mark.parametrize("at", [1, 4])
def test_with_dropout_an_interrupted_write_resumes_to_the_same_bytes(
    model: Model, tmp_path: Path, at: int, layers: tuple[int, ...] | None
) -> None:
    config = replace(DROPPED, batch_size=2, lora=LoraConfig(rank=4, layers=layers))
    interrupted(model, tmp_path, at=at, config=config)
    assert (tmp_path / CHECKPOINT_FILE).exists()
    assert same_adapter(
        write(model, EXAMPLES, config, run=tmp_path), write(model, EXAMPLES, config)
    )


@dataclass(frozen=True)
class Watching(Uniform):
    """Compares the outcome that weights are made of with a pass of its own."""

    name: str = "watching"
    model: Model | None = None
    off: list[float] = field(default_factory=list)

    def weights(
        self, outcome: StepOutcome, state: Mapping[str, Tensor], examples: Tensor
    ) -> Tensor:
        assert self.model is not None
        chosen = [EXAMPLES[i] for i in examples.tolist()]
        batch = self.model.batch([self.model.render(e.prompt, e.completion) for e in chosen])
        with torch.no_grad():
            clean_BC = self.model.completion_nats(batch).loss_BT
        self.off.append((clean_BC - outcome.loss_BC).abs().max().item())
        return super().weights(outcome, state, examples)


@pytest.mark.parametrize("layers", [None, (1,)])
def test_weights_and_states_come_from_a_pass_that_hides_nothing(
    model: Model, layers: tuple[int, ...] | None
) -> None:
    watching = Watching(model=model)
    config = replace(DROPPED, lora=LoraConfig(rank=4, layers=layers))
    hidden = write(model, EXAMPLES, config, objective=watching)
    assert max(watching.off) < 1e-4  # losses of some nats from passes of another shape
    plain = write(model, EXAMPLES, replace(config, dropout=0.0))
    assert not same_adapter(hidden, plain)  # what is minimised does hide


def test_checks_hide_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with_grad: list[bool] = []
    real = Masks.hide

    def spy(self: Masks, *args: Any, **kwargs: Any) -> Tensor:
        with_grad.append(torch.is_grad_enabled())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Masks, "hide", spy)
    done = write(
        model, EXAMPLES, replace(DROPPED, dropout=0.02, epochs=99, rest=0.9, order="curriculum")
    )
    assert done.complete and with_grad and all(with_grad)


def test_distillation_hides_as_well(model: Model) -> None:
    contexts = [f"{e.prompt} {e.completion}" for e in EXAMPLES]
    config = replace(DROPPED, objective="distill")
    once = write(model, EXAMPLES, config, contexts=contexts)
    assert same_adapter(once, write(model, EXAMPLES, config, contexts=contexts))
    assert not same_adapter(
        once, write(model, EXAMPLES, replace(config, dropout=0.0), contexts=contexts)
    )


def test_a_preset_ends_with_a_verdict_and_its_values_stand_in_the_card(tmp_path: Path) -> None:
    memory = Memory.open(tmp_path / "atlas")
    text = "# Aldmoor\n\nThe Tide Office of Aldmoor is led by Mira Voss. It opens at nine."
    outcome = memory.write(
        Document("aldmoor", text, "Aldmoor"),
        config=replace(BRIEF, lora=LoraConfig(rank=2, layers=(2,))),
        preset="generalise",
    )
    told = memory.adapter("aldmoor").card["settings"]["write"]
    assert 0.1 <= told["dropout"] <= 0.15 and 0.05 <= told["weight_decay"] <= 0.1
    said = [note for note in outcome.notes if note.startswith("Preset generalise: ")]
    assert len(said) == 1 and "dropout 0.1" in said[0] and "weight decay 0." in said[0]
    assert outcome.report.arms
