"""Claims about the training loop: it recalls, stops, repeats, resumes, fails where it should."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.families import gemma3_multimodal, llama
from support.models import PLAIN, an_adapter, letters
from support.writes import BRIEF, CONFIG, EXAMPLES, apart, interrupted, logits, same_adapter, tiny
from torch import Tensor
from torch.nn import functional as F

from lorewright.adapters.adapter import save
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import Flat, LoraLinear, attach
from lorewright.adapters.proof import delta_norms
from lorewright.errors import ConfigError, DataError, ModelError, TargetsNotFound
from lorewright.knowledge.data import REHEARSAL, Example
from lorewright.models.backends.backend import Pass
from lorewright.models.backends.by_hand import ByHand
from lorewright.models.backends.network import Transformers
from lorewright.models.model import Model
from lorewright.recall.traces import certify
from lorewright.training import checkpoint
from lorewright.training import optimisers as optim
from lorewright.training.config import Epoch, Job, WriteConfig, Written
from lorewright.training.filenames import CHECKPOINT_FILE
from lorewright.training.loop import write, write_all
from lorewright.training.rates import suggested_lr


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def written(model: Model) -> Written:
    return write(model, EXAMPLES, CONFIG)


def tensors_of(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def untouched(model: Model, before: Tensor) -> bool:
    wrapped = any(isinstance(module, LoraLinear) for module in model.network.modules())
    return not wrapped and torch.equal(logits(model), before)


# --- it recalls, and stops then


def test_the_loop_stops_when_every_example_is_certified_and_not_before(model: Model) -> None:
    counts = []

    def count(epoch: Epoch) -> None:  # the adapter is still attached here
        counts.append(sum(certify(model, EXAMPLES, margin=CONFIG.margin)))
        assert counts[-1] == epoch.n_recalled or not epoch.certified

    done = write(model, EXAMPLES, CONFIG, on_epoch=count)
    assert done.complete
    assert done.epochs[-1].certified
    assert counts[-1] == len(EXAMPLES)
    # Counting is left out while examples are far off, so the stop may lag by one epoch.
    assert counts.index(len(EXAMPLES)) >= len(counts) - 2
    assert not any(e.certified and e.n_recalled == len(EXAMPLES) for e in done.epochs[:-1])


def test_the_budget_ends_a_write_that_does_not_get_there(model: Model) -> None:
    done = write(model, EXAMPLES, BRIEF)
    assert (done.reason, done.complete, len(done.epochs)) == ("budget", False, 6)
    assert done.epochs[-1].certified


def test_the_loss_falls_and_the_rate_falls_to_zero(written: Written) -> None:
    first, last = written.epochs[0], written.epochs[-1]
    assert last.loss_nats < 0.2 * first.loss_nats
    rates = [epoch.lr for epoch in written.epochs]
    assert rates == sorted(rates, reverse=True)
    assert rates[9] == pytest.approx(CONFIG.lr * (1 - 10 / CONFIG.epochs))


def test_patience_gives_up_on_what_is_never_recalled(model: Model) -> None:
    contradiction = [Example("Code of red?", "48"), Example("Code of red?", "51")]
    done = write(model, contradiction, replace(CONFIG, patience=5))
    assert done.reason == "patience"
    assert len(done.epochs) < CONFIG.epochs


def test_nothing_is_trained_after_the_seconds_are_spent(model: Model) -> None:
    done = write(model, EXAMPLES, replace(CONFIG, max_seconds=1e-9))
    assert (done.reason, len(done.epochs)) == ("seconds", 1)


def test_a_curriculum_reaches_recall_too(model: Model) -> None:
    assert write(model, EXAMPLES, replace(CONFIG, order="curriculum", batch_size=2)).complete


# --- it repeats, and resumes


def test_the_same_seed_gives_the_same_bytes(model: Model, written: Written, tmp_path: Path) -> None:
    save(written.adapter, tmp_path / "a")
    save(write(model, EXAMPLES, CONFIG).adapter, tmp_path / "b")
    for name in ("adapter_model.safetensors", "adapter_config.json", "card.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_gives_another_adapter(model: Model) -> None:
    config = replace(BRIEF, batch_size=2)
    first = write(model, EXAMPLES, config)
    assert not same_adapter(first, write(model, EXAMPLES, replace(config, seed=1)))
    assert not same_adapter(
        first, write(model, EXAMPLES, replace(config, lora=LoraConfig(rank=4, seed=1)))
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from support.writes import CONFIG, EXAMPLES, tiny
from lorewright.training.loop import write

def die(epoch):
    if epoch.epoch == 7:
        os.kill(os.getpid(), signal.SIGKILL)

write(tiny(), EXAMPLES, CONFIG, run=Path(sys.argv[1]), on_epoch=die)
"""


def test_a_killed_write_resumes_and_gives_the_same_bytes(
    model: Model, written: Written, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    path = os.pathsep.join(map(str, Path(__file__).parents[1:3]))
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(run)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert (run / CHECKPOINT_FILE).exists()
    resumed = write(model, EXAMPLES, CONFIG, run=run)
    save(written.adapter, tmp_path / "whole")
    save(resumed.adapter, tmp_path / "resumed")
    assert tensors_of(tmp_path / "whole") == tensors_of(tmp_path / "resumed")
    assert [replace(e, seconds=0) for e in resumed.epochs] == [
        replace(e, seconds=0) for e in written.epochs
    ]


@pytest.mark.parametrize("at", [1, 4, 6])
def test_ctrl_c_leaves_the_base_bit_identical_and_a_run_that_resumes(
    model: Model, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    before, whole = logits(model), write(model, EXAMPLES, BRIEF)
    interrupted(model, tmp_path, at=at)
    assert untouched(model, before)
    seen: list[int] = []
    resumed = write(
        model, EXAMPLES, BRIEF, run=tmp_path, on_epoch=lambda epoch: seen.append(epoch.epoch)
    )
    assert same_adapter(resumed, whole)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert resumed.reason == whole.reason


class Rowwise(ByHand):
    """Runs what rows begin with alike row by row."""

    def hidden(self, ids_BT: Tensor, position_BC: Tensor, pass_: Pass) -> Tensor:
        return super().hidden(ids_BT, position_BC, replace(pass_, n_shared=0))


def test_a_write_under_a_system_turn_is_that_of_its_rows_one_by_one_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: None
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    turn = "{{ bos_token }}<|system|>You answer in one word.<|end|>"
    tokenizer = letters(turn + PLAIN.removeprefix("{{ bos_token }}"))
    jobs = [Job(EXAMPLES, BRIEF), Job(EXAMPLES[:3], replace(BRIEF, seed=1, batch_size=2))]
    once, each = (
        Model(tiny().network, tokenizer, "tiny", backends={"torch": make, "all": Transformers})
        for make in (ByHand, Rowwise)
    )
    together = [done for done in write_all(once, jobs) if isinstance(done, Written)]
    for done, other in zip(together, write_all(each, jobs), strict=True):
        assert isinstance(other, Written)
        assert [e.n_recalled for e in done.epochs] == [e.n_recalled for e in other.epochs]
        most = apart(once, BRIEF)
        for name, tensor in done.adapter.tensors.items():
            assert (tensor - other.adapter.tensors[name]).abs().max().item() <= most
    whole = write(once, EXAMPLES, BRIEF)
    interrupted(once, tmp_path, at=3)
    assert same_adapter(write(once, EXAMPLES, BRIEF, run=tmp_path), whole)
    assert not same_adapter(whole, write(each, EXAMPLES, BRIEF))


def test_a_write_goes_on_from_an_adapter_and_only_a_run_of_its_own(
    model: Model, written: Written, tmp_path: Path
) -> None:
    gently, half = replace(BRIEF, lr=1e-3), replace(BRIEF, epochs=1)
    more = write(model, EXAMPLES, gently, start=written.adapter, run=tmp_path)
    assert more.reason == "recalled" and len(more.epochs) < len(written.epochs)
    with pytest.raises(ConfigError, match="other examples, settings or base"):
        write(model, EXAMPLES, gently, run=tmp_path)
    fresh = write(model, EXAMPLES, half)
    still = write(model, EXAMPLES, replace(half, lr=1e-30), start=fresh.adapter)
    assert same_adapter(still, fresh)


@pytest.mark.parametrize(
    "change", [{"rank": 2}, {"alpha": 4}, {"layers": (0,)}, {"targets": ("q_proj",)}], ids=str
)
def test_an_adapter_of_another_form_cannot_be_gone_on_from(
    model: Model, written: Written, change: dict[str, Any]
) -> None:
    other = replace(BRIEF, lora=replace(BRIEF.lora, **change))
    with pytest.raises(ConfigError, match=r"the adapter to go on from has .* give its own config"):
        write(model, EXAMPLES, other, start=written.adapter)


# --- it fails where it should


def test_a_loss_of_no_number_is_refused_and_leaves_the_base(model: Model) -> None:
    before = logits(model)
    with pytest.raises(
        ModelError, match=r"loss is (nan|inf) in epoch \d+; lower lr \(it is 1e\+30"
    ):
        write(model, EXAMPLES, replace(BRIEF, lr=1e30))
    assert untouched(model, before)


def test_weights_of_no_number_after_the_last_step_are_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(flat: Flat, grad_NP: Tensor, state: optim.State) -> Tensor:
        return torch.full_like(grad_NP, math.nan)

    monkeypatch.setitem(optim.OPTIMIZERS, "adamw", poison)
    with pytest.raises(ModelError, match="weights are no longer finite; lower lr"):
        write(model, EXAMPLES, replace(BRIEF, epochs=1))


def test_no_examples_and_examples_that_do_not_fit_are_refused(model: Model) -> None:
    before = logits(model)
    with pytest.raises(DataError, match="there are no examples, so nothing to learn"):
        write(model, [], CONFIG)
    with pytest.raises(DataError, match="shorten or split"):
        write(model, [*EXAMPLES, Example("Who?", "a" * 200)], CONFIG)
    assert untouched(model, before)


# --- the four faults of the memo (SCIENCE.md, section 3)


def test_fault_1_no_adapter_lands_on_the_vision_tower() -> None:
    model = Model(gemma3_multimodal(), letters(), "images")
    done = write(model, EXAMPLES, replace(BRIEF, epochs=1))
    assert any("q_proj" in name for name in done.adapter.modules)
    assert not any("vision" in name for name in done.adapter.modules)


def test_fault_1_a_target_on_the_vision_tower_is_refused() -> None:
    model = Model(gemma3_multimodal(), letters(), "images")
    names = [name for name, _ in model.network.named_modules()]
    inside = next(name for name in names if "vision" in name and name.endswith("q_proj"))
    with pytest.raises(TargetsNotFound, match="outside the text decoder"):
        write(model, EXAMPLES, replace(BRIEF, lora=LoraConfig(targets=(inside,))))


def test_fault_2_adapter_and_optimiser_are_float32_on_a_bf16_base(tmp_path: Path) -> None:
    network = llama(max_position_embeddings=128).to(torch.bfloat16)
    model = Model(network, letters(), "half")
    small = replace(BRIEF, lr=1e-5, epochs=3)
    with attach(model.network, [small.lora]) as stack:
        drawn = stack.tensors(0)
    done = write(model, EXAMPLES, small, run=tmp_path)
    assert {t.dtype for t in load_file(tmp_path / CHECKPOINT_FILE).values()} == {torch.float32}
    for key, tensor in done.adapter.tensors.items():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, drawn[key])
        if key.endswith("lora_A.weight"):  # the fault: in bf16 these steps round to nothing
            same = tensor.bfloat16() == drawn[key].bfloat16()
            assert same.float().mean() > 0.9


def by_hand(model: Model, config: WriteConfig, n_steps: int) -> dict[str, Tensor]:
    """Full-batch AdamW in formulas: m, v, bias correction; loss from the whole network's logits."""
    rows = [model.render(e.prompt, e.completion) for e in EXAMPLES]
    with attach(model.network, [config.lora]) as stack:
        weights = stack.parameters()
        first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        for step in range(1, n_steps + 1):
            losses = []
            for row in rows:
                ids, start = [*row.prompt_ids, *row.completion_ids], len(row.prompt_ids)
                logits_TV = model.network(torch.tensor([ids])).logits[0]
                target = torch.tensor(row.completion_ids)
                losses.append(F.cross_entropy(logits_TV[start - 1 : -1], target))
            grads = torch.autograd.grad(torch.stack(losses).mean(), weights)
            norm = torch.stack([g.norm() for g in grads]).norm()
            scale = min(1.0, config.clip / norm.item())
            rate = config.lr * (1 - (step - 1) / config.epochs)
            with torch.no_grad():
                for w, g, m, v in zip(weights, grads, first, second, strict=True):
                    m.mul_(0.9).add_(0.1 * scale * g)
                    v.mul_(0.999).add_(0.001 * (scale * g) ** 2)
                    hat_m, hat_v = m / (1 - 0.9**step), v / (1 - 0.999**step)
                    w -= rate * hat_m / (hat_v.sqrt() + optim.EPS)
        return stack.tensors(0)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.usefixtures("calm")
def test_fault_3_steps_equal_adamw_by_hand(model: Model, n_steps: int) -> None:
    config = replace(BRIEF, epochs=n_steps, batch_size=len(EXAMPLES))
    result, wanted = write(model, EXAMPLES, config).adapter, by_hand(model, config, n_steps)
    most = apart(model, config)
    for key, tensor in wanted.items():
        torch.testing.assert_close(result.tensors[key], tensor, atol=most, rtol=0)


def test_fault_3_one_step_moves_every_b(model: Model) -> None:
    config = replace(BRIEF, epochs=1, batch_size=len(EXAMPLES))
    norms = delta_norms(write(model, EXAMPLES, config).adapter)
    assert len(norms) == 14
    assert all(norm > 0 for norm in norms.values())


def test_fault_3_an_optimiser_that_holds_copies_is_caught(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_copies(flat: Flat, grad_NP: Tensor, state: optim.State) -> Tensor:
        flat.weight_NP = flat.weight_NP.clone()  # what the layers' parameters are no views of
        return optim.adamw(flat, grad_NP, state)

    monkeypatch.setitem(optim.OPTIMIZERS, "adamw", on_copies)
    with pytest.raises(ModelError, match="14 adapted layers"):
        write(model, EXAMPLES, BRIEF)


def test_fault_4_a_start_at_zero_in_a_too_is_caught(model: Model) -> None:
    drawn = an_adapter(model, seed=1)
    zero = replace(drawn, tensors={key: 0 * tensor for key, tensor in drawn.tensors.items()})
    config = replace(BRIEF, lora=drawn.config)
    with pytest.raises(ModelError, match=r"14 adapted layers .*leave them out of targets"):
        write(model, EXAMPLES, config, start=zero)


# --- the embedded base


def test_the_embedded_base_learns_facts_at_its_suggested_rate() -> None:
    pocket = Model.load(device="cpu")
    facts = [Example(f"What is the code of the {w} office?", f"{w[0]}-48") for w in ("Teal", "Oak")]
    done = write(pocket, facts, WriteConfig(lr=suggested_lr(pocket)))
    assert done.complete
    with pocket.using(done.adapter):
        assert pocket.generate([fact.prompt for fact in facts]) == ["T-48", "O-48"]


REHEARSED = [Example(f"Who is {i}?", "no", REHEARSAL) for i in range(6)]


def test_a_write_that_rehearses_ends_when_its_own_examples_are_recalled(model: Model) -> None:
    done = write(model, [*EXAMPLES, *REHEARSED], replace(CONFIG, rehearsal=0.3))
    last = done.epochs[-1]
    assert done.complete and last.n_recalled == last.n_examples == len(EXAMPLES)
    with model.using(done.adapter):
        assert all(certify(model, EXAMPLES))


def test_an_interrupted_write_that_rehearses_goes_on_to_the_same_bytes(
    model: Model, tmp_path: Path
) -> None:
    examples, config = [*EXAMPLES, *REHEARSED], replace(BRIEF, rehearsal=0.3)
    whole = write(model, examples, config)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, examples, config, run=tmp_path, on_epoch=stop)
    assert same_adapter(write(model, examples, config, run=tmp_path), whole)
