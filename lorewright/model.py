"""A frozen base model with its tokenizer and chat template: render, batch, score, generate.

The only room that imports transformers. It knows prompts as plain text and renders them in one place,
so that what is written and what is asked cannot differ. It knows nothing of facts, objectives or files
of memories. The network is never changed outside ``with model.using(...)``.

Shape letters: B row, T token of the whole sequence, C token of the completion, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorewright.adapter import Adapter, validate
from lorewright.errors import DataError, ModelError
from lorewright.lora import Stack, attach, text_decoder

POCKET = "pocket"
"""Name of the embedded base model."""
DIGEST_SAMPLE = 65_536
"""Values hashed of each tensor: enough to tell models apart without reading gigabytes."""


@dataclass(frozen=True)
class Rendered:
    """A prompt and its completion as token ids, with template and stop token in place."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences and where their completions are predicted.

    ids_BT; position_BC: index into T whose logits predict completion token C; target_BC; mask_BC: 1 on
    real completion tokens. Causal attention needs no padding mask on the right.
    """

    ids_BT: Tensor
    position_BC: Tensor
    target_BC: Tensor
    mask_BC: Tensor


class Model:
    """A causal language model that is read, never changed."""

    def __init__(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> None:
        """Wrap a network and its tokenizer; freezes the network and puts it in eval mode."""
        self.name = name
        self.network = network.eval()
        self.network.requires_grad_(False)
        self.tokenizer = tokenizer
        self.digest = _digest(network)
        self.template_digest = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[
            :16
        ]
        self.context = _context(network, tokenizer)
        self.phrasing = str(network.config.to_dict().get("lorewright_phrasing", "general"))
        self._stop_ids = _stop_ids(network, tokenizer)
        self._head: nn.Module | None = self._plain_head()

    @classmethod
    def load(
        cls,
        name: str = POCKET,
        *,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
    ) -> Model:
        """Load `pocket`, a local folder, or a Hugging Face causal language model by name.

        Raises ModelError with what was tried: no such folder or model, no network, no tokenizer, not a
        causal language model.
        """
        place = str(Path(__file__).parent / "pocket") if name == POCKET else name
        if (
            name != POCKET
            and ("/" not in name or name.startswith((".", "/")))
            and not Path(name).is_dir()
        ):
            raise ModelError(
                f"asked for the base model {name!r}; it is neither {POCKET!r} nor a folder; "
                "give a folder with config.json, or a hub name like Qwen/Qwen3-0.6B."
            )
        try:
            config = AutoConfig.from_pretrained(place, revision=revision)
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
            kind = _auto_class(config)
            network = kind.from_pretrained(place, dtype=dtype, revision=revision)
        except (OSError, ValueError, KeyError, ImportError) as error:
            first = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise ModelError(
                f"asked for the base model {name!r}; it could not be loaded: {first} "
                "Check the name, the network and HF_HOME, or give a folder."
            ) from error
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network.to(target), tokenizer, name)

    @property
    def device(self) -> torch.device:
        """Where the network's first parameter lies."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's first floating-point parameter."""
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    # -- text to tokens ------------------------------------------------------------------------

    def render(
        self, prompt: str, completion: str | None = None, *, system: str | None = None
    ) -> Rendered:
        """Put a prompt and its completion into the chat template; the stop token ends the completion.

        An empty prompt means plain text without a template: the completion continues the start token.
        Raises DataError when the whole is longer than the model's context.
        """
        if prompt:
            head, tail = self._templated(prompt, completion, system)
        else:
            head, tail = "", None if completion is None else completion
        templated = bool(prompt) and self.tokenizer.chat_template is not None
        prompt_ids = self._encode(head, special=not templated)
        completion_ids = [] if tail is None else self._encode(tail, special=False)
        if tail is not None and (not completion_ids or completion_ids[-1] not in self._stop_ids):
            completion_ids.append(self._stop_ids[0])
        if not prompt_ids:
            prompt_ids = [self._start_id()]
        rendered = Rendered(tuple(prompt_ids), tuple(completion_ids))
        if len(rendered) > self.context:
            raise DataError(
                f"prompt and answer have {len(prompt_ids)} + {len(completion_ids)} tokens; {self.name!r} reads "
                f"at most {self.context}; shorten or split them (prompt starts {prompt[:40]!r})."
            )
        return rendered

    def _templated(
        self, prompt: str, completion: str | None, system: str | None
    ) -> tuple[str, str | None]:
        if self.tokenizer.chat_template is None:
            head = f"{system}\n\n{prompt}" if system else prompt
            return head, None if completion is None else f" {completion}"
        turns = [{"role": "user", "content": prompt}]
        if system:
            turns.insert(0, {"role": "system", "content": system})
        try:
            head = self._template(turns, open_reply=True)
        except jinja2.TemplateError:  # the template has no system turn: the user says it
            turns = [{"role": "user", "content": f"{system}\n\n{prompt}" if system else prompt}]
            head = self._template(turns, open_reply=True)
        if completion is None:
            return head, None
        whole = self._template(
            [*turns, {"role": "assistant", "content": completion}], open_reply=False
        )
        return head, whole[len(head) :].rstrip() if whole.startswith(head) else completion

    def _template(self, turns: list[dict[str, str]], *, open_reply: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=open_reply, enable_thinking=False
        )
        assert isinstance(text, str)
        return text

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"]) if text else []

    def _start_id(self) -> int:
        start = self.tokenizer.bos_token_id
        return int(start if start is not None else self._stop_ids[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens, stripped."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip()

    # -- scoring -------------------------------------------------------------------------------

    def batch(self, rows: Sequence[Rendered]) -> Batch:
        """Pad the rows on the right and say where their completion tokens are predicted."""
        width = max(len(row) for row in rows)
        n_completion = max(len(row.completion_ids) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(rows), width), self._stop_ids[0] if pad is None else int(pad))
        position, target = torch.zeros(2, len(rows), n_completion, dtype=torch.long)
        mask = torch.zeros(len(rows), n_completion)
        for i, row in enumerate(rows):
            n, start = len(row.completion_ids), len(row.prompt_ids)
            ids[i, : len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
            position[i, :n] = torch.arange(start - 1, start - 1 + n)
            target[i, :n] = torch.tensor(row.completion_ids)
            mask[i, :n] = 1.0
        return Batch(*(part.to(self.device) for part in (ids, position, target, mask)))

    def completion_logits(self, batch: Batch) -> Tensor:
        """Logits_BCV in float32 at the completion positions only; the head runs nowhere else.

        Carries gradient for attached adapters. Where the model does more than decoder and head (soft caps,
        scaled logits), the whole network runs and its logits are selected.
        """
        rows_B1 = torch.arange(len(batch.ids_BT), device=self.device)[:, None]
        if self._head is None:
            logits_BTV = self.network(input_ids=batch.ids_BT, use_cache=False).logits
            return logits_BTV[rows_B1, batch.position_BC].float()
        decoder = text_decoder(self.network)
        hidden_BTD = decoder(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        logits: Tensor = self._head(hidden_BTD[rows_B1, batch.position_BC])
        return logits.float()

    def _plain_head(self) -> nn.Module | None:
        """The output head, if decoder then head is all that the network does; checked on a few tokens."""
        head = self.network.get_output_embeddings()
        if not isinstance(head, nn.Module):
            return None
        ids_BT = torch.tensor(
            [[self._start_id(), *self._stop_ids, self._start_id()]], device=self.device
        )
        with torch.no_grad():
            whole = self.network(input_ids=ids_BT, use_cache=False).logits
            parts = head(
                text_decoder(self.network)(input_ids=ids_BT, use_cache=False).last_hidden_state
            )
        return head if torch.equal(whole, parts) else None

    # -- generating ----------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        system: str | None = None,
    ) -> list[str]:
        """Greedy free-running replies, in the order of the prompts; batched by similar length."""
        rows = [self.render(prompt, system=system).prompt_ids for prompt in prompts]
        return [
            self.decode(ids)
            for ids in self.generate_ids(rows, max_new_tokens=max_new_tokens, batch_size=batch_size)
        ]

    @torch.no_grad()
    def generate_ids(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, batch_size: int = 32
    ) -> list[list[int]]:
        """Greedy continuations of token rows, without the stop token; left-padded batches."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, ids in zip(
                chosen, self._generate_batch([rows[i] for i in chosen], max_new_tokens), strict=True
            ):
                found[i] = ids
        return [found[i] for i in range(len(rows))]

    def _generate_batch(self, rows: list[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        width = max(len(row) for row in rows)
        room = min(max_new_tokens, self.context - width)
        if room < 1:
            raise DataError(
                f"a prompt has {width} tokens; {self.name!r} reads at most {self.context}; shorten it."
            )
        pad = self.tokenizer.pad_token_id
        pad = self._stop_ids[0] if pad is None else int(pad)
        ids = torch.tensor(
            [[pad] * (width - len(row)) + list(row) for row in rows], device=self.device
        )
        mask = torch.tensor(
            [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*generation flags are not valid.*")
            out = self.network.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=room,
                do_sample=False,
                num_beams=1,
                pad_token_id=pad,
                eos_token_id=self._stop_ids,
            )
        return [_until(list(map(int, row[width:])), self._stop_ids) for row in out]

    # -- adapters ------------------------------------------------------------------------------

    @contextmanager
    def using(self, *adapters: Adapter) -> Iterator[Stack | None]:
        """Attach adapters for the length of a block; rows use the first until `stack.bind` says otherwise.

        No adapter: the base as it is. Raises AdapterError or WrongBase before the network is touched.
        """
        if not adapters:
            yield None
            return
        for adapter in adapters:
            validate(
                adapter, self.network, base_digest=self.digest if adapter.base_digest else None
            )
        with attach(self.network, [adapter.config for adapter in adapters]) as stack:
            for n, adapter in enumerate(adapters):
                stack.load(n, adapter.tensors)
            yield stack


def _auto_class(config: Any) -> Any:
    """The auto class for the configuration: plain text first, text-and-image wrappers otherwise."""
    names = " ".join(config.architectures or ())
    return (
        AutoModelForImageTextToText if "ForConditionalGeneration" in names else AutoModelForCausalLM
    )


def _digest(network: PreTrainedModel) -> str:
    """Sha256 over names, shapes, dtypes and an even sample of every tensor's values."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // DIGEST_SAMPLE)].contiguous().cpu()
        hasher.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        hasher.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    return hasher.hexdigest()


def _context(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest sequence the model reads, in tokens: the smaller of what model and tokenizer say."""
    text = network.config.get_text_config().to_dict()
    limits = [int(text["max_position_embeddings"])] if text.get("max_position_embeddings") else []
    if tokenizer.model_max_length < 10**9:
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=1024)


def _stop_ids(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a reply, the tokenizer's own first. Raises ModelError if there is none."""
    generation = network.generation_config
    more = generation.eos_token_id if generation is not None else None
    ids = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    found = list(dict.fromkeys(int(i) for i in ids if i is not None))
    if not found:
        raise ModelError(
            f"{network.config.name_or_path!r} names no end-of-text token; set eos_token in its tokenizer."
        )
    return found


def _until(ids: list[int], stops: Sequence[int]) -> list[int]:
    return next((ids[:i] for i, token in enumerate(ids) if token in stops), ids)
