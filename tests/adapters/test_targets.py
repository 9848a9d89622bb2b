"""Claims about which layers carry an adapter: coverage, presets, refusals with their reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.families import FAMILIES, gemma3_multimodal, gpt2, llama, qwen3_moe
from torch import nn

from lorewright.adapters.targets import resolve_targets, text_decoder
from lorewright.errors import ConfigError, TargetsNotFound

Build = Callable[[], nn.Module]
family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
ALL = ("all-linear",)


@family
def test_all_linear_covers_every_linear_of_the_text_decoder_and_nothing_else(build: Build) -> None:
    model = build()
    decoder = text_decoder(model)
    inside = {id(m) for m in decoder.modules() if isinstance(m, nn.Linear)}
    names = resolve_targets(model, ALL).names
    assert {id(model.get_submodule(name)) for name in names} == inside
    assert not [name for name in names if "vision" in name or "lm_head" in name or "embed" in name]


def test_names_that_also_match_in_the_vision_tower_bind_the_text_decoder_only() -> None:
    coverage = resolve_targets(gemma3_multimodal(), ("q_proj", "k_proj"))
    assert len(coverage.names) == 4
    assert all(name.startswith("model.language_model.layers.") for name in coverage.names)
    outside = [n for n, why in coverage.skipped.items() if why == "outside the text decoder"]
    assert "model.vision_tower.encoder.layers.0.self_attn.q_proj" in outside


@family
def test_presets_split_the_linear_layers_without_rest(build: Build) -> None:
    model = build()
    parts = [resolve_targets(model, (t,)).names for t in ("attention", "mlp")]
    assert parts[0] and parts[1] and not set(parts[0]) & set(parts[1])
    assert {*parts[0], *parts[1]} == set(resolve_targets(model, ALL).names)


def test_layers_and_dotted_names_narrow_the_choice_and_coverage_can_be_printed() -> None:
    coverage = resolve_targets(llama(), ("self_attn.q_proj", "mlp"), (1,))
    assert coverage.n_linear == 14 and len(coverage.names) == 4
    rows = resolve_targets(llama(num_hidden_layers=5), ALL, (0, 1, 2, 4)).table()
    assert ("mlp.up_proj", 4, "layers 0-2,4") in rows
    assert ("skipped", 1, "the output head") in rows


@pytest.mark.parametrize(
    ("build", "targets", "message"),
    [
        (llama, ("q_prj",), r"matched 0 of 14 linear layers.*closest: 'self_attn.q_proj'"),
        (llama, ("q_proj", "nonsense"), r"'nonsense' matched 0 of 14"),
        (llama, ("roj",), "matched 0 of 14"),
        (llama, ("lm_head",), "the output head"),
        (llama, ("embed_tokens",), "an embedding"),
        (gemma3_multimodal, ("fc1",), r"3 other.*vision_tower.*outside the text decoder"),
        (gpt2, ("all-linear",), "Conv1D"),
        (qwen3_moe, ("experts",), "fused expert weights"),
    ],
)
def test_a_target_that_binds_nothing_is_refused_with_the_reason(
    build: Build, targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(TargetsNotFound, match=message):
        resolve_targets(build(), targets)


def test_routers_and_cross_attention_carry_no_adapter() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.gate = nn.Linear(4, 4), nn.Linear(4, 2)
            self.cross_attn = nn.ModuleDict({"v_proj": nn.Linear(4, 4)})

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block()])
            self.project_in = nn.Linear(4, 4)

    coverage = resolve_targets(Tiny(), ALL)
    assert coverage.names == ("layers.0.q_proj",)
    assert coverage.skipped == {
        "layers.0.gate": "a router",
        "layers.0.cross_attn.v_proj": "cross-attention to another tower",
        "project_in": "outside the numbered layers",
    }


def test_layers_that_do_not_exist_or_do_not_hold_the_target_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers \[7\] do not exist; .* has 0 to 1"):
        resolve_targets(llama(), ALL, (0, 7))
    targets = ("q_proj", "model.layers.1.mlp.up_proj")
    with pytest.raises(TargetsNotFound, match=r"up_proj' is in layers 1, not in \[0\]"):
        resolve_targets(llama(), targets, (0,))
