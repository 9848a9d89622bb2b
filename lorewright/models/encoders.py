"""Sentence encoders: texts to vectors whose cosine says how near they are in meaning.

    v(text) = u / |u|,   u = mean over tokens of the last hidden states (or what the model's folder
    says: the first token, the last one, the largest value)

An `Encoder` is two functions and a name with a digest. ENCODERS has those that go by a short name;
any other is a folder, or a name on the hub, of a model in the form of sentence-transformers:
pooling, longest text and prefixes are read from its files. Weights are loaded at the first text.

Paper: Reimers and Gurevych 2019, arXiv 1908.10084 (mean pooling).

Shape letters: B text, T token, H hidden.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorewright.errors import DataError, ModelError, StorageError, first_line
from lorewright.files import read_object
from lorewright.models.catalogue import KNOWN_ENCODERS, Progress, unpacked

if TYPE_CHECKING:
    from torch import Tensor

Embed = Callable[[list[str]], NDArray[np.float32]]
"""n texts to an array of n rows."""

NONE, MINILM, AUTO = "none", "minilm", "auto"
BATCH = 32
"""Texts in one pass."""
LONGEST = 512
"""Tokens of a text that are read where the model's folder says nothing else."""
FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*_Pooling/config.json")
"""What is fetched from the hub."""
REMEDY = "give the folder of a whole sentence encoder"


@dataclass(frozen=True)
class Encoder:
    """A way from texts to vectors."""

    id: str
    """Name and digest; an index remembers which encoder its vectors are of."""
    embed: Embed = field(repr=False)
    embed_question: Embed | None = field(default=None, repr=False)
    """For questions, where the encoder wants them prefixed; None = as any text."""


def encoder_of(name: str, progress: Progress = lambda text: None) -> Encoder | None:
    """Return an encoder by its name in ENCODERS, `auto`, a folder, or a name on the hub.

    `auto` is MiniLM where it is on this machine, else None. Raises ModelError for what is none of
    these or no sentence encoder, and StorageError when the disk refuses.
    """
    if name == AUTO:
        name = MINILM if KNOWN_ENCODERS[MINILM].here else NONE
    if name in ENCODERS:
        return ENCODERS[name](progress)
    place = Path(name).expanduser()
    if place.is_dir():
        return in_folder(place, f"{place.resolve().name}@{_digest(place)}")
    if "/" not in name or name.startswith((".", "/", "~")):
        raise ModelError(
            f"the encoder {name!r} is none of {', '.join((AUTO, *ENCODERS))} and no folder; give "
            "one of these, or a hub name like sentence-transformers/all-MiniLM-L6-v2."
        )
    fetched = _fetched(name, progress)
    return in_folder(fetched, f"{name}@{fetched.name[:12]}")


def in_folder(folder: Path, identity: str) -> Encoder:
    """Return the encoder of a folder in the form of sentence-transformers.

    Raises ModelError for a folder of another form, at once; for damaged weights at the first text.
    """
    settings = _settings(folder)
    loaded = cache(partial(_load, folder, settings))

    def embed(prefix: str, texts: list[str]) -> NDArray[np.float32]:
        return loaded()([prefix + text for text in texts])

    question = partial(embed, settings.question_prefix)
    asked_alike = settings.question_prefix == settings.text_prefix
    return Encoder(
        identity, partial(embed, settings.text_prefix), None if asked_alike else question
    )


# -- a folder ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What sentence-transformers keeps beside a model."""

    pooling: str
    longest: int
    text_prefix: str
    question_prefix: str


def _settings(folder: Path) -> _Settings:
    """Read them; raises ModelError for modules that are not read."""
    try:
        read_object(folder / "config.json", REMEDY)
        pooling = _optional(folder / "1_Pooling" / "config.json")
        prompts = _optional(folder / "config_sentence_transformers.json").get("prompts") or {}
        longest = int(
            _optional(folder / "sentence_bert_config.json").get("max_seq_length") or LONGEST
        )
        modes = [key for key, value in pooling.items() if value is True and key in POOLINGS]
    except (DataError, StorageError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder} is no sentence encoder: {first_line(error)}.") from error
    named = [str(pooling["pooling_mode"])] if isinstance(pooling.get("pooling_mode"), str) else []
    modes = modes or [f"pooling_mode_{POOLED.get(mode, mode)}" for mode in named] or [MEAN]
    more = [path.name for path in sorted(folder.glob("[0-9]*_Dense*"))]
    if len(modes) != 1 or modes[0] not in POOLINGS or more:
        raise ModelError(
            f"the encoder in {folder} has {', '.join([*modes, *more])}; only one pooling of "
            f"{', '.join(POOLINGS)} and no further layer is read; give another encoder."
        )
    text, question = (
        next((str(prompts[key]) for key in keys if prompts.get(key)), "")
        for keys in (("document", "passage"), ("query",))
    )
    return _Settings(modes[0], longest, text, question)


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path, REMEDY) if path.is_file() else {}


def _load(folder: Path, settings: _Settings) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Tokenizer and network, as a function of texts. Raises ModelError for what is not whole."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    from lorewright.models.loading import context_length, without_progress_bar

    try:
        with without_progress_bar():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            network, info = AutoModel.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
        missing = [key for key in info["missing_keys"] if "pooler" not in key]  # it is not used
        if missing:
            raise ValueError(f"{len(missing)} weights are not in its files, first {missing[0]}")
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"the encoder in {folder} could not be loaded: {first_line(error)}; {REMEDY}."
        ) from error
    network.eval()
    pool = POOLINGS[settings.pooling]
    most = min(settings.longest, context_length(network, tokenizer))

    @torch.inference_mode()
    def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
        by_length = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        row_BH = np.zeros((len(texts), network.config.hidden_size), dtype=np.float32)
        for start in range(0, len(texts), BATCH):
            rows = by_length[start : start + BATCH]
            batch = tokenizer(
                [texts[n] for n in rows],
                padding=True,
                truncation=True,
                max_length=most,
                return_tensors="pt",
            )
            state_BTH = network(**batch).last_hidden_state
            pooled_BH = pool(state_BTH, batch["attention_mask"])
            row_BH[rows] = torch.nn.functional.normalize(pooled_BH, dim=1).numpy()
        return row_BH

    return vectors


def mean_pooled(state_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the tokens of each text, (B, H)."""
    mask_BT1 = mask_BT[..., None].to(state_BTH.dtype)
    return (state_BTH * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)


def first_pooled(state_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """State of the first token of each text, (B, H)."""
    return state_BTH[range(len(state_BTH)), mask_BT.argmax(dim=1)]


def last_pooled(state_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """State of the last token of each text, whichever side is padded, (B, H)."""
    last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(dim=1)
    return state_BTH[range(len(state_BTH)), last_B]


def max_pooled(state_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """Largest value over the tokens of each text, (B, H)."""
    return state_BTH.masked_fill(mask_BT[..., None] == 0, -float("inf")).amax(dim=1)


MEAN = "pooling_mode_mean_tokens"
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    MEAN: mean_pooled,
    "pooling_mode_cls_token": first_pooled,
    "pooling_mode_lasttoken": last_pooled,
    "pooling_mode_max_tokens": max_pooled,
}
"""By the key that sentence-transformers has for it in 1_Pooling/config.json."""
POOLED = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
"""Newer spelling to the end of the older one."""


# -- where it is from ----------------------------------------------------------------------------


def _digest(folder: Path) -> str:
    """What tells a folder's encoder from another: of its weights and settings."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]


def _fetched(name: str, progress: Progress) -> Path:
    """The folder of a hub model; what was fetched before needs no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    fetch = partial(snapshot_download, name, allow_patterns=list(FILES))
    try:
        try:
            return Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            progress(f"fetching the encoder {name}")
            return Path(fetch())
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            f"the encoder {name!r} could not be fetched: {first_line(error)}. Check the name, the "
            "network and HF_HOME, or give a folder."
        ) from error


def _minilm(progress: Progress) -> Encoder:
    known = KNOWN_ENCODERS[MINILM]
    return in_folder(unpacked(MINILM, progress), f"{MINILM}@{known.sha256[:12]}")


ENCODERS: dict[str, Callable[[Progress], Encoder | None]] = {
    NONE: lambda progress: None,
    MINILM: _minilm,
}
"""By the name that --encoder takes; None = words only."""
