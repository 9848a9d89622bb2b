"""Exact memory, measured: a stack of writes on one frozen base, and every token that came back.

Ranks, methods and seeds are members of one stack and get the same examples, the same order of
batches, the same peak rate and the same budget of steps. Losses, lengths and accuracies count
answer tokens only; that an answer is exact includes that it ends where it should.

Knows writes and traces; nothing of where the examples come from.

Paper: "How LoRA Remembers? A Parametric Memory Law for LLM Finetuning", arXiv 2605.30260.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.targets import layer_list, resolve_targets
from lorewright.errors import ConfigError, WrongBase
from lorewright.knowledge.data import Example
from lorewright.models.model import Model
from lorewright.recall.traces import TokenTrace, trace
from lorewright.training.config import Diverged, Job, WriteConfig, Written
from lorewright.training.loop import write_all
from lorewright.training.rates import suggested_lr

NARROW_RATE = 6.0
"""Peak rate in one layer over the one for adapters in all: a small one wants larger steps."""
MARGIN = 0.9
"""A write ends early when every p exceeds this, so that L_final of what is recalled is near 0."""
SAFE_MARGIN = 0.5
"""Where methods are compared: the papers' threshold of ln 2, at which a token is safe."""
DIGITS = 4  # of a stored probability
THIRDS = ("early", "centre", "late")
"""Of the layers, from below."""


class Method(NamedTuple):
    """What is minimised, and in which order the examples come."""

    objective: str
    order: str


METHODS: dict[str, Method] = {
    "sft": Method("sft", "shuffle"),
    "threshold": Method("memft_threshold", "shuffle"),
    "window": Method("memft_window", "shuffle"),
    "curriculum": Method("sft", "curriculum"),
    "window+curriculum": Method("memft_window", "curriculum"),
}
"""What is compared. The paper's MemFT-OT is threshold, its MemFT-SW window+curriculum."""


class Setting(NamedTuple):
    """One member of a stack."""

    rank: int
    method: str
    seed: int
    """Of the first A and the order of the batches."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every memory of a sweep is written, whatever its rank, method and seed."""

    model: str = "pocket"
    """A base: pocket, a folder, a .gguf file, or a name on the hub."""
    placement: str = "all-linear"
    """Adapted layers: TARGET@LAYER, like mlp@middle, or TARGET for all layers."""
    epochs: int = 60
    """Budget of every write."""
    batch: int = 8
    """Examples of a step."""
    lr: float = 0.0
    """Peak rate; 0 = the one that suits base and placement."""
    margin: float = MARGIN
    """A write ends early when every p exceeds this."""

    def job(self, base_digest: str) -> dict[str, Any]:
        """The part that all jobs share."""
        shared = {each.name: getattr(self, each.name) for each in fields(Recipe)}
        return {**shared, "base": base_digest}


@dataclass(frozen=True, kw_only=True)
class Comparison(Recipe):
    """Methods side by side at the same rates and budgets, on several draws of the data."""

    ranks: tuple[int, ...] = (1, 2, 4)
    """Ranks of the adapters."""
    methods: tuple[str, ...] = tuple(METHODS)
    """sft, threshold, window, curriculum, window+curriculum."""
    seeds: int = 5
    """Draws of the data."""
    epochs: int = 40
    """Budget; the same for every method."""
    margin: float = SAFE_MARGIN
    """A write ends early when every p exceeds this."""

    def __post_init__(self) -> None:
        """Refuse unknown methods."""
        settings(self.ranks, self.methods, (0,))

    def job(self, base_digest: str) -> dict[str, Any]:
        """As of a recipe; all ranks and methods are one stack."""
        listed = {"ranks": list(self.ranks), "methods": list(self.methods), "repeats": 1}
        return super().job(base_digest) | listed


# -- what is written -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def base_model(name: str, digest: str) -> Model:
    """Return the base of a job, loaded once a process; raises WrongBase if it is another by now."""
    model = Model.load(name)
    if digest and model.digest != digest:
        raise WrongBase(
            f"the sweep was begun on {name!r} with digest {digest[:12]}; it has {model.digest[:12]}"
            " now; begin a new one."
        )
    return model


def placement(model: Model, name: str) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Return targets and layers of a placement such as ``down_proj@3``, ``mlp@middle`` or ``mlp``.

    ``@middle`` is the layer two thirds of the way up, as in the paper, ``@last`` the last one,
    ``@early``, ``@centre`` and ``@late`` a third of the layers; without ``@`` all layers.
    Raises ConfigError for a layer that is no number, and as `resolve_targets`.
    """
    targets, _, where = name.partition("@")
    layers: tuple[int, ...] | None = None
    if where in THIRDS:
        n, third = len(layer_list(model.network)), THIRDS.index(where)
        layers = tuple(range(n * third // 3, max(n * (third + 1) // 3, n * third // 3 + 1)))
    elif where in ("middle", "last"):
        last = len(layer_list(model.network)) - 1
        layers = (min(last, round((last + 1) * 2 / 3)) if where == "middle" else last,)
    elif where.isascii() and where.isdecimal():
        layers = (int(where),)
    elif where or "@" in name:
        raise ConfigError(f"placement {name!r} is no TARGET@LAYER; write it like down_proj@3.")
    resolve_targets(model.network, tuple(targets.split("+")), layers)
    return tuple(targets.split("+")), layers


def settings(ranks: Sequence[int], methods: Sequence[str], seeds: Sequence[int]) -> list[Setting]:
    """Return every combination; raises ConfigError for an unknown method."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"method {unknown[0]!r} is unknown; use one of {', '.join(METHODS)}.")
    return [Setting(*each) for each in itertools.product(ranks, methods, seeds)]


def config_of(model: Model, job: Mapping[str, Any], setting: Setting) -> WriteConfig:
    """Return how a member is trained; a job has placement, lr (0 = by the base), epochs, batch."""
    targets, layers = placement(model, job["placement"])
    method = METHODS[setting.method]
    return WriteConfig(
        lora=LoraConfig(rank=setting.rank, targets=targets, layers=layers, seed=setting.seed),
        objective=method.objective,
        order=method.order,
        lr=job["lr"] or round(suggested_lr(model) * (NARROW_RATE if layers else 1), 6),
        epochs=job["epochs"],
        batch_size=job["batch"],
        margin=job["margin"],
        seed=setting.seed,
    )


# -- what came back ------------------------------------------------------------------------------


@torch.no_grad()
def decoded(
    model: Model, examples_of: Sequence[Sequence[Example]], written: Sequence[Written]
) -> list[list[list[int]]]:
    """Return what every adapter says to its prompts, freely and greedily: adapter, example, token.

    Adapters with one prompt each, all equally long, are decoded in one batch, a row each.
    """
    rows = [[model.render(e.prompt, e.completion) for e in examples] for examples in examples_of]
    longest = max((len(row.completion_ids) for each in rows for row in each), default=1)
    first = [each[0].prompt_ids for each in rows]
    if any(len(each) > 1 for each in rows) or len(set(map(len, first))) != 1:
        outputs = []
        for each, adapter in zip(rows, written, strict=True):
            with model.using(adapter.adapter):
                prompts = [row.prompt_ids for row in each]
                outputs.append(model.generate_ids(prompts, max_new_tokens=longest))
        return outputs
    with model.using(*(each.adapter for each in written)) as stack:
        assert stack is not None
        stack.bind(torch.arange(len(written)))
        together = model.generate_ids(first, max_new_tokens=longest, batch_size=len(first))
    return [[ids] for ids in together]


def nats(traces: Sequence[TokenTrace]) -> float:
    """Return the mean loss per answer token; the stop token, the last of each, is left out."""
    losses = [-math.log(max(p, 1e-30)) for t in traces for p in t.p[:-1]]
    return sum(losses) / len(losses)


def outcome(
    model: Model,
    examples: Sequence[Example],
    traces: Sequence[TokenTrace],
    outputs: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Return what traces and free-running outputs came to, as plain JSON.

    ``first_failure`` and ``first_stubborn`` are positions among the answer tokens and the stop
    token, one a text, None where there is none; ``n_flipped`` counts texts of which decoding and
    the certificate disagree, which near-ties can do.
    """
    targets = [model.render(e.prompt, e.completion).completion_ids for e in examples]
    n_right, n_tokens, n_flipped, exact, failures = 0, 0, 0, [], []
    for ids, traced, output in zip(targets, traces, outputs, strict=True):
        same = [a == b for a, b in itertools.zip_longest(output[: len(ids)], ids[:-1])]
        exact.append(all(same))
        failures.append(next((i for i, right in enumerate(same) if not right), None))
        n_flipped += exact[-1] != traced.exact
        n_right += sum(same[: len(ids) - 1])
        n_tokens += len(ids) - 1
    return {
        "n": len(examples),
        "n_answer_tokens": n_tokens,
        "loss": round(nats(traces), 6),
        "exact": sum(exact),
        "token_accuracy": round(n_right / n_tokens, 6),
        "first_failure": failures,
        "first_stubborn": [next(iter(t.stubborn), None) for t in traces],
        "n_stubborn": [len(t.stubborn) for t in traces],
        "n_flipped": n_flipped,
    }


def rows_of(
    model: Model,
    job: Mapping[str, Any],
    members: Sequence[tuple[Setting, Sequence[Example]]],
    *,
    unseen: Sequence[Example] = (),
    positions: bool = False,
) -> list[dict[str, Any]]:
    """Write every member's examples, all in one stack, and return what each recalls, as plain JSON.

    A job says how: see `config_of`; its ``repeats`` visits make an epoch (of a text alone, between
    two checks of recall). ``unseen`` examples are tested as well: that is generalisation.
    ``positions`` keeps p of every token. A member that diverged has ``why`` instead of outcomes.
    """
    works = [
        Job([e for e in examples for _ in range(job["repeats"])], config_of(model, job, setting))
        for setting, examples in members
    ]
    done = write_all(model, works)
    before: dict[tuple[Example, ...], float] = {}
    for _, examples in members:
        if tuple(examples) not in before:
            before[tuple(examples)] = nats(_traced(model, examples, None))
    whole = [(w, e) for w, (_, e) in zip(done, members, strict=True) if isinstance(w, Written)]
    outputs = iter(decoded(model, [e for _, e in whole], [w for w, _ in whole]) if whole else ())
    rows = []
    for (setting, examples), written in zip(members, done, strict=True):
        init = round(before[tuple(examples)], 6)
        steps = sum(-(-epoch.n_trained // job["batch"]) for epoch in written.epochs)
        row: dict[str, Any] = {**setting._asdict(), "loss_init": init, "steps": steps}
        if isinstance(written, Diverged):
            rows.append(row | {"why": written.why})
            continue
        n_parameters = sum(tensor.numel() for tensor in written.adapter.tensors.values())
        row |= {"n_parameters": n_parameters, "reason": written.reason}
        traces = _traced(model, examples, written)
        row |= outcome(model, examples, traces, next(outputs))
        if positions:
            row["p"] = [[round(p, DIGITS) for p in each.p] for each in traces]
        if unseen:
            (output,) = decoded(model, [unseen], [written])
            tested = outcome(model, unseen, _traced(model, unseen, written), output)
            row["unseen"] = {key: tested[key] for key in ("n", "exact", "token_accuracy", "loss")}
        rows.append(row)
    return rows


def stack_of(
    model: Model, job: Mapping[str, Any], examples: Sequence[Example], **more: Any
) -> dict[str, Any]:
    """Return a record of the same examples by every rank and method of a job; see `rows_of`."""
    members = settings(job["ranks"], job["methods"], (job["seed"],))
    return {"rows": rows_of(model, job, [(member, examples) for member in members], **more)}


def _traced(model: Model, examples: Sequence[Example], written: Written | None) -> list[TokenTrace]:
    with model.using(*([written.adapter] if written else [])):
        return trace(model, [model.render(e.prompt, e.completion) for e in examples])
