"""What training takes, in bytes, term by term: does it fit?

    weights + gradients + optimiser + activations

P parameters of the base, L of them in linear layers, T trained ones, N tokens a batch. Weights of a
frozen base take 2 bytes each (bfloat16), or under QLoRA 4.127 bits in linear layers: NF4 with the
scales quantised too, arXiv 2305.14314, section 3. What is trained takes 12: 2 for the weight, 2 for
its gradient, 8 for Adam's two moments.
With checkpointed activations a token leaves one hidden state a layer, and the inside of one layer
at a time with its gradient; its logits take 6 bytes a word. DoRA, arXiv 2402.09353, trains a length
for each output besides, and norms one layer's weight at a time.

In float32, as this library trains on a CPU, a weight takes 4 bytes and what is trained 16; a token
leaves the inside of every layer and five hidden states more (what norms keep, attention's output,
keys and values repeated for all heads, the gate after its nonlinearity), and 128 positions have
logits at a time, with their exponentials and their gradient.

Pure arithmetic: knows no model, only its sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorewright.errors import ConfigError

if TYPE_CHECKING:
    from lorewright.models.sizes import Sizes

FULL, LORA, QLORA, DORA, QDORA = "full", "lora", "qlora", "dora", "qdora"
METHODS: Mapping[str, str] = {
    FULL: "all weights are trained",
    LORA: "A and B on a frozen base",
    QLORA: "A and B on a base in four bits",
    DORA: "A, B and lengths on a frozen base",
    QDORA: "A, B and lengths on a base in four bits",
}
HALF = 2
"""Bytes of a value in bfloat16."""
NF4_BITS = 4.127
"""Of a weight: 4, and 0.127 for the scale of 64 of them, itself quantised."""
TRAINED = 12
"""Bytes of a trained value in mixed precision: weight, gradient, two moments of Adam."""
OWN_TRAINED = 16
"""The same in float32, as A and B are trained here."""
FULL_WIDTH = 4
"""Bytes of a value in float32."""
LOGIT_ROWS = 128
"""Positions that have logits at a time here."""
USABLE = 0.92
"""Share of a GPU's memory that training may have; the rest is the driver's and fragments."""
GPUS: Mapping[str, float] = {
    "RTX 4090": 24e9,
    "RTX 5090": 32e9,
    "L40S": 48e9,
    "A100 / H100 80 GB": 80e9,
    "H200": 141e9,
    "B200": 180e9,
}
"""Bytes, as vendors count them."""


@dataclass(frozen=True)
class Term:
    """One part of what is needed."""

    what: str
    formula: str
    n_bytes: float


@dataclass(frozen=True)
class Budget:
    """What training a base takes."""

    base: str
    method: str
    rank: int
    n_tokens: int
    n_parameters: int
    n_trained: int
    terms: tuple[Term, ...]

    @property
    def n_bytes(self) -> float:
        """All terms together."""
        return math.fsum(term.n_bytes for term in self.terms)

    @property
    def gpus(self) -> dict[str, int]:
        """By kind of GPU, how many hold it when it is split evenly."""
        return {name: math.ceil(self.n_bytes / (USABLE * size)) for name, size in GPUS.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"n_bytes": self.n_bytes, "gpus": self.gpus}


def budget(
    sizes: Sizes,
    method: str = LORA,
    *,
    rank: int = 8,
    n_tokens: int = 2048,
    checkpointing: bool = True,
    bytes_trained: int = TRAINED,
) -> Budget:
    """What training takes with so many tokens a batch, and which GPUs hold it.

    Raises ConfigError for an unknown method or numbers below 1.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}.")
    for what, number in (("rank", rank), ("tokens", n_tokens)):
        if number < 1:
            raise ConfigError(f"{what} is {number}; give at least 1.")
    if bytes_trained not in (TRAINED, OWN_TRAINED):
        raise ConfigError(
            f"a trained value takes {bytes_trained} bytes; give {TRAINED}, or {OWN_TRAINED} in "
            "float32."
        )
    n_all, n_linear, n_rest = sizes.n_parameters, sizes.n_linear, sizes.n_rest
    n_trained = n_all if method == FULL else rank * sizes.n_values
    each = HALF if bytes_trained == TRAINED else FULL_WIDTH
    terms: list[Term] = []
    if method in (QLORA, QDORA):
        packed = NF4_BITS / 8 * n_linear
        terms.append(Term("linear layers, frozen", f"{NF4_BITS} bit × {n_linear:,}", packed))
        terms.append(Term("the rest, frozen", f"{each} B × {n_rest:,}", each * n_rest))
    elif method != FULL:
        terms.append(Term("weights, frozen", f"{each} B × {n_all:,}", each * n_all))
    parts = {"trained": each, "their gradients": each, "Adam's moments": bytes_trained - 2 * each}
    for what, n in parts.items():
        terms.append(Term(what, f"{n} B × {n_trained:,}", n * n_trained))
    if method in (DORA, QDORA):
        n_rows, n_layer = sizes.n_rows, sizes.largest_layer
        lengths = bytes_trained * n_rows
        terms.append(Term("lengths", f"{bytes_trained} B × {n_rows:,}", lengths))
        terms.append(Term("one layer's norm", f"{each} B × {n_layer:,}", each * n_layer))
        n_trained += n_rows
    if each == HALF:
        terms.append(_activations(sizes, n_tokens, checkpointing))
    else:
        terms += _activations_here(sizes, n_tokens, checkpointing)
    return Budget(sizes.name, method, rank, n_tokens, n_all, n_trained, tuple(terms))


def _activations(sizes: Sizes, n_tokens: int, checkpointing: bool) -> Term:
    inside, logits = HALF * sizes.n_inside, (HALF + 4) * sizes.n_vocab
    if checkpointing:
        each = HALF * sizes.width * sizes.n_layers + 2 * inside + logits
    else:
        each = inside * sizes.n_layers + logits
    return _of_tokens(each, n_tokens, checkpointing)


def _activations_here(sizes: Sizes, n_tokens: int, checkpointing: bool) -> list[Term]:
    """The same in float32, and the logits of some positions."""
    checkpointed = sizes.width * sizes.n_layers + 2 * sizes.n_inside
    each = FULL_WIDTH * (checkpointed if checkpointing else sizes.n_kept)
    n_rows = min(LOGIT_ROWS, n_tokens)
    logits = 3 * FULL_WIDTH * n_rows * sizes.n_vocab
    formula = f"3 × {FULL_WIDTH} B × {n_rows} × {sizes.n_vocab:,}"
    return [_of_tokens(each, n_tokens, checkpointing), Term("logits", formula, logits)]


def _of_tokens(each: float, n_tokens: int, checkpointing: bool) -> Term:
    what = "activations, checkpointed" if checkpointing else "activations"
    return Term(what, f"{each / 1e6:.2f} MB × {n_tokens:,} tokens", each * n_tokens)


LLAMA_65B: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
"""The base of the published figures, arXiv 2302.13971."""
REFERENCE_TOKENS = 2048


@dataclass(frozen=True)
class Published:
    """What others state for LLaMA-65B."""

    method: str
    n_bytes: float
    source: str


PUBLISHED = (
    Published(FULL, 780e9, "QLoRA, arXiv 2305.14314: more than 780 GB"),
    Published(LORA, 160e9, "quoted without settings; ours reach it at 10,000 tokens a batch"),
    Published(QLORA, 48e9, "QLoRA, arXiv 2305.14314: less than 48 GB"),
    Published(QDORA, 52e9, "quoted without settings; ours reach it at 3,600 tokens a batch"),
)
REFERENCE = "llama-65b"
"""Its name where a base is named."""


@dataclass(frozen=True)
class Account:
    """What every method takes on a base, the chosen one in full."""

    chosen: Budget
    every: tuple[Budget, ...]
    published: tuple[Published, ...]
    """Beside the reference base alone."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "chosen": self.chosen.to_json(),
            "every": [each.to_json() for each in self.every],
            "published": [asdict(each) for each in self.published],
        }


def account(
    base: str,
    method: str = LORA,
    *,
    rank: int = 8,
    targets: Sequence[str] = ("all-linear",),
    n_tokens: int = REFERENCE_TOKENS,
    checkpointing: bool = True,
    float32: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Account:
    """What training a base takes under every method; `config` is used in place of its config.json.

    Raises as `budget` and `sizes.sizes_of`.
    """
    from lorewright.models.sizes import sizes_in, sizes_of

    if method not in METHODS:
        raise ConfigError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}.")
    about = LLAMA_65B if base == REFERENCE and config is None else config
    sizes = sizes_of(base, targets) if about is None else sizes_in(about, targets, name=base)
    every = {
        name: budget(
            sizes,
            name,
            rank=rank,
            n_tokens=n_tokens,
            checkpointing=checkpointing,
            bytes_trained=OWN_TRAINED if float32 else TRAINED,
        )
        for name in METHODS
    }
    published = PUBLISHED if about is LLAMA_65B else ()
    return Account(every[method], tuple(every.values()), published)
