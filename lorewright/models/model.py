"""A frozen base model with its tokenizer and chat template: render, batch, score, generate.

Prompts are rendered in one place, so that training and questions afterwards cannot differ. The
network is never changed outside ``with model.using(...)``.

Shape letters: B row, T token of the whole sequence, C token of the completion, V vocabulary, X
values of a position, M positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorewright.adapters import quantise
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.lora import Stack, attach
from lorewright.adapters.proof import validate
from lorewright.adapters.targets import text_decoder
from lorewright.errors import DataError, ModelError
from lorewright.models.backends.backend import AS_BOUND, Backend, MakeBackend, Pass
from lorewright.models.backends.builtin import BACKENDS
from lorewright.models.backends.reduced import Reduced
from lorewright.models.batching import worth_sharing
from lorewright.models.catalogue import POCKET
from lorewright.models.decoding import Decoding, Ends, Order, Progress, Sampling, loops
from lorewright.models.fingerprint import fingerprint
from lorewright.models.loading import context_length, read_base, stop_ids
from lorewright.models.nats import LOGIT_VALUES, TokenNats, token_nats
from lorewright.models.templates import templated

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Until = Callable[[int, str, Sequence[int]], str | None]
"""(number of a reply, its text and ids so far) -> the whole reply where it ends here, or None."""


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

    ids_BT; position_BC: index into T whose logits predict completion token C; target_BC; mask_BC:
    1 on real completion tokens. Causal attention needs no padding mask on the right.
    """

    ids_BT: Tensor
    position_BC: Tensor
    target_BC: Tensor
    mask_BC: Tensor

    def take(self, index_B: Tensor, n_tokens: int, n_completion: int) -> Batch:
        """Some of the rows, cut to the longest of them in tokens and in completion tokens."""
        return Batch(
            self.ids_BT[index_B, :n_tokens],
            self.position_BC[index_B, :n_completion],
            self.target_BC[index_B, :n_completion],
            self.mask_BC[index_B, :n_completion],
        )


class Model:
    """A causal language model that is read, never changed."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        backends: Mapping[str, MakeBackend] = BACKENDS,
    ) -> None:
        """Wrap a network and its tokenizer; freezes the network and puts it in eval mode.

        A pass runs in the first of `backends` that does not refuse it. Raises ModelError without
        an end-of-text token, or when predictions depend on later tokens.
        """
        self.name = name
        self.network = network.eval()
        self.network.requires_grad_(False)
        self.tokenizer = tokenizer
        self.loaded_as = "auto"
        quantise.pass_gradients(network)
        self.digest = fingerprint(network)
        template = str(tokenizer.chat_template).encode()
        self.template_digest = hashlib.sha256(template).hexdigest()[:16]
        self.context = context_length(network, tokenizer)
        self.phrasing = str(network.config.to_dict().get("lorewright_phrasing", "general"))
        self._stop_ids = stop_ids(network, tokenizer, name)
        pad = tokenizer.pad_token_id
        self._pad_id = self._stop_ids[0] if pad is None else int(pad)
        self._head: nn.Module | None = self._plain_head()
        body = text_decoder(network) if self._head is not None else network
        self.backends = {key: make(body) for key, make in backends.items()}
        self.runs_in()  # has backends try themselves on the base alone
        self._decoding = Decoding(
            network,
            body,
            self._head,
            name,
            stop_ids=self._stop_ids,
            pad_id=self._pad_id,
            context=self.context,
        )
        self._n_vocab = int(network.config.get_text_config().vocab_size)

    @classmethod
    def load(
        cls,
        name: str = POCKET,
        *,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        implementation: str = "auto",
    ) -> Model:
        """Load a base by its name in the catalogue, from a folder or a .gguf file, or from the hub.

        `dtype` is auto (as in the files), a float dtype of torch, or nf4: see `quantise`.
        `implementation` transformers gives a network that is a PreTrainedModel, which trainers of
        other libraries need; auto, a plain torch module where that computes the same bits. Raises
        ModelError with what was tried: no such folder or model, no network, no tokenizer, no such
        device, weights missing from the files, not a causal language model.
        """
        network, tokenizer = read_base(
            name, dtype=dtype, device=device, revision=revision, implementation=implementation
        )
        model = cls(network, tokenizer, name)
        model.loaded_as = dtype
        return model

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
        """Put a prompt and its completion into the chat template, up to the token that ends it.

        An empty prompt means plain text without a template: the completion continues the start
        token. Raises DataError when the whole is longer than the model's context, or when the
        completion itself spells a stop token, after which nothing could be recalled.
        """
        head, tail = "", completion
        if prompt:
            head, tail = templated(self.tokenizer, self.name, prompt, completion, system)
        plain = not prompt or self.tokenizer.chat_template is None
        prompt_ids = self._encode(head, special=plain) or [self._start_id()]
        completion_ids: list[int] = []
        if completion is not None and tail is not None:
            stops = map(str, self.tokenizer.convert_ids_to_tokens(self._stop_ids))
            spelled = [stop for stop in stops if stop in completion]
            if spelled:
                raise DataError(
                    f"an answer holds {spelled[0]!r}, which ends a reply of {self.name!r}, so the "
                    f"rest could not be recalled; take it out (prompt starts {prompt[:40]!r})."
                )
            ids = self._encode(tail, special=False)
            reply = _until(ids, self._stop_ids)
            completion_ids = [*reply, *(ids[len(reply) :] or self._stop_ids)[:1]]
        rendered = Rendered(tuple(prompt_ids), tuple(completion_ids))
        if len(rendered) > self.context:
            raise DataError(
                f"prompt and answer have {len(prompt_ids)} + {len(completion_ids)} tokens; "
                f"{self.name!r} reads at most {self.context}; shorten or split them "
                f"(prompt starts {prompt[:40]!r})."
            )
        return rendered

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"]) if text else []

    def _start_id(self) -> int:
        start = self.tokenizer.bos_token_id
        return int(start if start is not None else self._stop_ids[0])

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply."""
        return tuple(self._stop_ids)

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
        ids = torch.full((len(rows), width), self._pad_id)
        position, target = torch.zeros(2, len(rows), n_completion, dtype=torch.long)
        mask = torch.zeros(len(rows), n_completion)
        for i, row in enumerate(rows):
            n, start = len(row.completion_ids), len(row.prompt_ids)
            ids[i, : len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
            position[i, :n] = torch.arange(start - 1, start - 1 + n)
            target[i, :n] = torch.tensor(row.completion_ids)
            mask[i, :n] = 1.0
        return Batch(*(part.to(self.device) for part in (ids, position, target, mask)))

    def backend(self, pass_: Pass = AS_BOUND) -> Backend:
        """The first backend that runs a pass on the network as it is now."""
        for backend in self.backends.values():
            if backend.refusal(pass_) is None:
                return backend
        raise ModelError(f"no backend runs this pass of {self.name!r}; have transformers last.")

    def runs_in(self, pass_: Pass = AS_BOUND) -> str:
        """What a pass runs in and, in brackets, why in nothing quicker."""
        chosen, why = self.backend(pass_), None
        for backend in self.backends.values():
            if backend is chosen:
                break
            why = backend.refusal(pass_)
        return f"{chosen.name} ({why})" if why else chosen.name

    def sharing(self, rows: Sequence[Rendered]) -> Pass:
        """A pass over rows of one memory, or none, that runs once what their prompts begin with.

        Where that pays; and where a backend knows all that runs, for what a memory hooks into a
        network need not see the same tokens again.
        """
        chosen = self.backend()
        if not chosen.by_weights:
            return AS_BOUND
        n_shared = worth_sharing([row.prompt_ids for row in rows], max(map(len, rows)))
        pass_ = Pass(n_shared=n_shared)
        return pass_ if n_shared and self.backend(pass_) is chosen else AS_BOUND

    def completion_logits(self, batch: Batch, pass_: Pass = AS_BOUND) -> Tensor:
        """Logits_BCV in float32 at the completion positions only; the head runs nowhere else.

        Carries gradient for attached adapters. Where the model does more than decoder and head
        (soft caps, scaled logits), the whole network runs and its logits are selected.
        """
        values_BCX = self.backend(pass_).hidden(batch.ids_BT, batch.position_BC, pass_)
        head = self._head_of(pass_)
        return (values_BCX if head is None else head(values_BCX)).float()

    def _head_of(self, pass_: Pass) -> nn.Module | None:
        """The head as a pass multiplies with it."""
        if self._head is None or pass_.reduced is None:
            return self._head
        return pass_.reduced.head(self._head)

    def completion_nats(self, batch: Batch, pass_: Pass = AS_BOUND) -> TokenNats:
        """Loss_BC in nats and whether each token is the argmax; padding has loss 0 and is right.

        Holds few logits at a time where the network is decoder and head.
        """
        on_cpu = self.device.type == "cpu"  # elsewhere few logits cost less than finding the mask's
        many = batch.mask_BC.numel() * self._n_vocab > LOGIT_VALUES
        real_BC = batch.mask_BC.bool()
        head = self._head_of(pass_)
        if head is None or not (on_cpu or many):
            ids_BC = torch.where(real_BC, batch.target_BC, -1)
            return token_nats(self.completion_logits(batch, pass_), ids_BC)
        at_MM = real_BC.nonzero(as_tuple=True)
        position_BC = torch.where(real_BC, batch.position_BC, -1)
        hidden_BCD = self.backend(pass_).hidden(batch.ids_BT, position_BC, pass_)
        score = next(filter(None, (b.losses(head) for b in self.backends.values())))
        nats_M, right_M = score(hidden_BCD[at_MM], batch.target_BC[at_MM])
        right_BC = torch.ones_like(real_BC).index_put(at_MM, right_M)
        return TokenNats(torch.zeros_like(batch.mask_BC).index_put(at_MM, nats_M), right_BC)

    def _plain_head(self) -> nn.Module | None:
        """The output head, if decoder then head is all that the network does; None otherwise.

        Tried on two rows of a few tokens that differ in the last one. Raises ModelError when that
        changes what is predicted before it.
        """
        start, stop = self._start_id(), self._stop_ids[0]
        rows = [[start, *self._stop_ids, start, last] for last in (stop, int(stop == 0))]
        ids_BT = torch.tensor(rows, device=self.device)
        with torch.no_grad():
            whole_BTV = self.network(input_ids=ids_BT, use_cache=False).logits
            moved = (whole_BTV[0, :-1].float() - whole_BTV[1, :-1].float()).abs().max().item()
            noise = max(1e-4, 4 * torch.finfo(whole_BTV.dtype).eps)
            if moved > noise * whole_BTV.float().abs().max().item():
                raise ModelError(
                    f"{self.name!r} is not a causal language model: later tokens changed an "
                    f"earlier prediction by {moved:.2g}; choose a model that generates text."
                )
            head = self.network.get_output_embeddings()
            if not isinstance(head, nn.Module):
                return None
            decoder = text_decoder(self.network)
            parts_BTV = head(decoder(input_ids=ids_BT, use_cache=False).last_hidden_state)
        return head if torch.equal(whole_BTV, parts_BTV) else None

    # -- generating ----------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | Sequence[int] = 64,
        system: str | None = None,
        stop: Sequence[str] = (),
        until: Until | None = None,
        end_loops: bool = False,
        guesses: Sequence[str] = (),
        sampling: Sampling | None = None,
        on_reply: Callable[[int, str], None] = lambda number, reply: None,
        progress: Progress = lambda done, total: None,
        batch_size: int | None = None,
    ) -> list[str]:
        """Free-running replies in the order of the prompts, greedy unless `sampling` says how.

        A reply ends with a stop token, before any text in `stop`, where `until` says so, with
        `end_loops` where it goes round in circles (`decoding.loops`), after its `max_new_tokens` or
        at the model's context. `guesses` are what greedy replies may be, an
        empty one none: what is right of them takes one pass. With several samples the replies to a
        prompt stand together and are numbered through. `on_reply` is called with the number of each
        reply when it ends, `progress` after every pass. Raises DataError for a prompt that leaves
        no space for a reply.
        """
        rendered = [self.render(prompt, system=system) for prompt in prompts]
        for i, guess in enumerate(guesses):
            with suppress(DataError):  # what cannot be a reply is no guess
                rendered[i] = self.render(prompts[i], guess or None, system=system)
        final: dict[int, str] = {}

        def ended(number: int, ids: list[int]) -> bool:
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            assert isinstance(text, str)
            at = min((text.find(each) for each in stop if each in text), default=None)
            cut = text[:at] if at is not None else until(number, text, ids) if until else None
            if cut is not None:
                final[number] = cut.strip()
            return cut is not None or (end_loops and loops(ids))

        def text_of(number: int, ids: Sequence[int]) -> str:
            return final[number] if number in final else self.decode(ids)

        replies = self.generate_ids(
            [row.prompt_ids for row in rendered],
            max_new_tokens=max_new_tokens,
            guesses=[row.completion_ids for row in rendered],
            sampling=sampling,
            ends=ended if stop or until or end_loops else None,
            on_reply=lambda number, ids: on_reply(number, text_of(number, ids)),
            progress=progress,
            batch_size=batch_size,
        )
        return [text_of(number, ids) for number, ids in enumerate(replies)]

    def generate_ids(
        self,
        rows: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        guesses: Sequence[Sequence[int]] = (),
        sampling: Sampling | None = None,
        ends: Ends | None = None,
        on_reply: Callable[[int, list[int]], None] = lambda number, ids: None,
        progress: Progress = lambda done, total: None,
        batch_size: int | None = None,
        reduced: Reduced | None = None,
    ) -> list[list[int]]:
        """Continuations of token rows, without the stop token; see `generate` and `decoding`.

        With `reduced` weights frozen layers multiply in bfloat16: for what is checked afterwards.
        """
        limits = [max_new_tokens] * len(rows) if isinstance(max_new_tokens, int) else max_new_tokens
        order = Order(
            rows, limits, guesses, sampling, ends, on_reply, progress, batch_size, reduced
        )
        return self._decoding.replies(order)

    # -- adapters ------------------------------------------------------------------------------

    @contextmanager
    def using(self, *adapters: Adapter) -> Iterator[Stack | None]:
        """Attach adapters for the length of a block; rows use the first until `stack.bind`.

        No adapter: the base as it is. Raises AdapterError or WrongBase before the network is
        touched.
        """
        if not adapters:
            yield None
            return
        for adapter in adapters:
            validate(adapter, self.network, self.digest)
        with attach(self.network, [adapter.config for adapter in adapters]) as stack:
            for n, adapter in enumerate(adapters):
                stack.load(n, adapter.tensors)
            yield stack


def _until(ids: list[int], stops: Sequence[int]) -> list[int]:
    """The ids before the first stop token."""
    return next((ids[:i] for i, token in enumerate(ids) if token in stops), ids)
