"""Claims about kits as files, and about every method that needs one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.kits import random_kit, untrained
from support.writes import logits, tiny
from torch import Tensor

from lorewright.adapters.adapter import HALVES
from lorewright.errors import ConfigError, DataError, WrongBase
from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.watch import Watch
from lorewright.writers import kit as kits
from lorewright.writers.delta import delta_rule
from lorewright.writers.kit import Kit, cached_path
from lorewright.writers.learned import PIECE
from lorewright.writers.methods import LEARNED, writer_of
from lorewright.writers.pieces import pieces_of
from lorewright.writers.stacked import hidden
from lorewright.writers.writer import Material

TEXTS = ("Red is 48. Blue is 7.5.", "Grey has the code a-1. Teal: KX.")
SOURCES = [Knowledge((Document("codes", text),)) for text in TEXTS]
FROM_ZERO = [name for name in LEARNED if name not in ("gradmem", "perk")]
"""Methods whose untrained kit writes nothing; vectors before a row are never nothing, and steps on
a text move a LoRA adapter from any start."""
FULL_RANK = 32


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def states(model: Model, kit: Kit, sources: list[Knowledge]) -> dict[str, Tensor]:
    pieces = pieces_of(model, sources, int(kit.options[PIECE]))
    with torch.no_grad():
        return LEARNED[kit.method].states(model, kit, pieces)


@pytest.mark.parametrize("name", LEARNED)
def test_documents_of_one_stack_are_written_as_each_alone(model: Model, name: str) -> None:
    kit = random_kit(model, name)
    method, ids_BT = LEARNED[name], torch.arange(3, 40).expand(2, -1)
    with torch.no_grad():
        with method.on(model, kit, states(model, kit, SOURCES), torch.arange(2)):
            both = hidden(model, ids_BT)
        for n, source in enumerate(SOURCES):
            with method.on(
                model, kit, states(model, kit, [source]), torch.zeros(1, dtype=torch.long)
            ):
                alone = hidden(model, ids_BT[:1])
            assert torch.allclose(both[n], alone[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(both[0], both[1], rtol=1e-3, atol=1e-4), "each has its own state"


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_stored_answers_as_the_state_in_training_did(model: Model, name: str) -> None:
    kit, method = random_kit(model, name), LEARNED[name]
    own = states(model, kit, SOURCES[:1])
    stored, _ = method.leave(model, kit, own, FULL_RANK)
    ids_1T = torch.arange(3, 60)[None]
    with torch.no_grad():
        base = model.network(ids_1T).logits
        with method.on(model, kit, own, torch.zeros(1, dtype=torch.long)):
            wanted = model.network(ids_1T).logits
        with stored.on(model):
            read = model.network(ids_1T).logits
    size = wanted.abs().max()
    assert (read - wanted).abs().max() <= 1e-4 * size < (wanted - base).abs().max()


@pytest.mark.parametrize("name", FROM_ZERO)
def test_with_an_untrained_kit_the_base_stays_as_it_is_bit_for_bit(model: Model, name: str) -> None:
    kit, before = untrained(model, name), logits(model)
    with LEARNED[name].on(
        model, kit, states(model, kit, SOURCES[:1]), torch.zeros(1, dtype=torch.long)
    ):
        assert torch.equal(logits(model), before)


def test_perk_without_steps_is_its_start_and_that_is_the_base(model: Model) -> None:
    kit, before = untrained(model, "perk", {"steps": 0}), logits(model)
    own = states(model, kit, SOURCES[:1])
    assert all(torch.equal(own[k][0], kit.tensors[k]) for k in own)
    with LEARNED["perk"].on(model, kit, own, torch.zeros(1, dtype=torch.long)):
        assert torch.equal(logits(model), before)


def test_learnt_outer_products_at_full_rank_are_their_sum_in_float64(model: Model) -> None:
    kit = random_kit(model, "in-place-kit")
    own = states(model, kit, SOURCES[:1])
    stored, about = LEARNED["in-place-kit"].leave(model, kit, own, FULL_RANK)
    adapter = stored.adapter  # type: ignore[attr-defined]
    shares = [row["share"] for row in about["energy_by_rank"]]
    assert adapter.modules and shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1
    for name in adapter.modules:
        keys, values = (own[name + half][0].double() for half in HALVES)
        outer = [torch.outer(t, k) for t, k in zip(values.T, keys, strict=True)]
        summed = torch.stack(outer).sum(0)
        A_RI, B_OR = (adapter.tensors[name + half].double() for half in HALVES)
        assert torch.allclose(B_OR @ A_RI, summed, rtol=0, atol=1e-5 * float(summed.abs().max()))


def test_adapters_of_pieces_side_by_side_are_the_sum_of_their_outputs(model: Model) -> None:
    kit = random_kit(model, "doc2lora", {PIECE: 12})
    text = TEXTS[0]
    parts = [Knowledge((Document("p", part),)) for part in ("Red is 48.", "Blue is 7.5.")]
    whole = states(model, kit, [Knowledge((Document("w", text),))])
    alone = [states(model, kit, [part]) for part in parts]
    generator = torch.Generator().manual_seed(3)
    for name in {key.removesuffix(HALVES[0]) for key in whole if key.endswith(HALVES[0])}:
        assert whole[name + HALVES[0]].shape[1] == 2 * alone[0][name + HALVES[0]].shape[1]
        x = torch.randn(4, whole[name + HALVES[0]].shape[2], generator=generator)

        def output(factors: dict[str, Tensor], name: str = name, x: Tensor = x) -> Tensor:
            return x @ factors[name + HALVES[0]][0].mT @ factors[name + HALVES[1]][0].mT

        total = output(alone[0]) + output(alone[1])
        assert torch.allclose(output(whole), total, rtol=0, atol=1e-5 * float(total.abs().max()))


def one_by_one(S: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    for t in range(k.shape[1]):
        off = v[:, t, :, None] - S @ k[:, t, :, None]
        S = S + beta[:, t, :, None] * (off @ k[:, t, None, :])
    return S


def test_the_delta_rule_in_chunks_is_the_rule_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    k, v, noise = torch.randn(3, 2, 150, 8, generator=generator, dtype=torch.float64)
    k, beta = torch.nn.functional.normalize(k, dim=-1), torch.sigmoid(noise)
    start = torch.randn(2, 8, 8, generator=generator, dtype=torch.float64)
    wanted = one_by_one(start, k, v, beta)
    assert torch.allclose(delta_rule(start, k, v, beta), wanted, rtol=0, atol=1e-10)
    first = delta_rule(start, k[:, :41], v[:, :41], beta[:, :41])
    rest = delta_rule(first, k[:, 41:], v[:, 41:], beta[:, 41:])
    assert torch.allclose(rest, wanted, rtol=0, atol=1e-10)


def test_a_state_holds_eight_orthogonal_pairs_exactly_and_the_ninth_costs() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    values = torch.randn(9, 8, generator=generator, dtype=torch.float64)
    zero, sure = torch.zeros(1, 8, 8, dtype=torch.float64), torch.ones(1, 9, 8).double()
    S = delta_rule(zero, keys[None], values[None, :8], sure[:, :8])[0]
    assert torch.allclose(keys @ S.T, values[:8], rtol=0, atol=1e-12)
    ninth = torch.nn.functional.normalize(torch.ones(1, 8).double(), dim=-1)
    more = delta_rule(zero, torch.cat([keys, ninth])[None], values[None], sure)[0]
    assert torch.allclose(ninth @ more.T, values[8:], rtol=0, atol=1e-12), "the last is exact"
    assert float((keys @ more.T - values[:8]).abs().max()) > 0.1


def test_an_overwritten_key_gives_the_new_value_alone() -> None:
    key = torch.tensor([[1.0, 0.0]])
    S = torch.zeros(1, 2, 2)
    for value in ([[3.0, 1.0]], [[-2.0, 5.0]]):
        S = delta_rule(S, key[None], torch.tensor([value]), torch.ones(1, 1, 2))
    assert (key @ S[0].T).tolist() == [[-2.0, 5.0]]


# The file


@pytest.fixture
def stored(model: Model, tmp_path: Path) -> tuple[Kit, Path]:
    kit = replace(random_kit(model, "delta"), about={"steps": 3, "seed": 5})
    path = tmp_path / "delta.kit.safetensors"
    kit.save(path)
    return kit, path


def test_a_kit_reads_back_as_it_was(stored: tuple[Kit, Path], model: Model) -> None:
    kit, path = stored
    again = kits.load(path)
    assert again.id == kit.id and again.card() == kit.card()
    assert all(torch.equal(again.tensors[k], kit.tensors[k]) for k in kit.tensors)
    assert kit.size_bytes < path.stat().st_size < kit.size_bytes + 8000
    again.check(model, "delta")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_kit_is_refused(stored: tuple[Kit, Path], share: float) -> None:
    _, path = stored
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="truncated or damaged"):
        kits.load(path)


def test_a_changed_byte_another_file_and_none_are_refused(
    stored: tuple[Kit, Path], tmp_path: Path
) -> None:
    _, path = stored
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="other tensors than its card says"):
        kits.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="is no kit"):
        kits.load(tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="there is no kit"):
        kits.load(tmp_path / "missing")


def test_a_kit_of_another_base_or_method_is_refused(stored: tuple[Kit, Path], model: Model) -> None:
    kit, path = stored
    other = replace(kit, base_id="another", base_digest="0" * 64)
    other.save(path)
    writer = writer_of("delta", WriteConfig(kit=str(path)))
    with pytest.raises(WrongBase, match=r"trained on 'another'.*lore kit train delta --model tiny"):
        writer.write(model, Material(SOURCES[0]), seed=0, run=None, watch=Watch())
    kit.save(path)
    writer = writer_of("perk", WriteConfig(kit=str(path)))
    with pytest.raises(ConfigError, match="'perk' is needed and this one is of 'delta'"):
        writer.write(model, Material(SOURCES[0]), seed=0, run=None, watch=Watch())


def test_the_users_kit_is_taken_without_a_name_and_before_a_shipped_one(
    stored: tuple[Kit, Path], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOREWRIGHT_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs a kit.*none for 'tiny'.*lore kit train delta"):
        kits.find(model, "delta")
    monkeypatch.setattr(kits, "SHIPPED", tmp_path / "shipped")
    shipped = random_kit(model, "delta", size=0.2)
    shipped.save(tmp_path / "shipped" / cached_path("delta", model.digest).name)
    assert kits.find(model, "delta").id == shipped.id
    stored[0].save(cached_path("delta", model.digest))
    assert kits.find(model, "delta").id == stored[0].id
    assert len(list(kits.paths())) == 2


def test_pieces_are_whole_sentences_and_lines_of_facts(model: Model) -> None:
    facts = (Fact("a", "Code of red?", "48"), Fact("b", "Code of blue?", "7.5"))
    source = Knowledge((Document("codes", TEXTS[0]),), facts)
    rows = pieces_of(model, [source, SOURCES[1]], 12)
    texts = [
        model.decode(ids[mask.bool()].tolist())
        for ids, mask in zip(rows.ids_MT, rows.mask_MT, strict=True)
    ]
    assert any("Red is 48." in text and "Blue" not in text for text in texts)
    assert any("Code of blue? 7.5" in text for text in texts)
    assert rows.owner_M.tolist() == [0, 0, 0, 0, 1, 1] and rows.n_documents == 2
    assert json.dumps(rows.n_tokens)
    with pytest.raises(DataError, match="no text to read"):
        pieces_of(model, [Knowledge()], 12)
