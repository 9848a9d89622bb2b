"""Free-running replies: rows that begin alike share a pass, and leave when they end.

Rows are put into groups by what they begin with: that goes through the decoder once, however many
rows follow. A guess of a reply costs one pass: what greedy decoding would have given of it is taken
over, and decoding goes on from there. Replies are those of plain greedy decoding, to rounding.

Decoders that are not of Llama's form run in transformers' own `generate`, in left-padded batches.

Shape letters: B row, T token, M positions, D width, V vocabulary.

Papers: guesses that are checked in one pass, speculative decoding, arXiv 2211.17192; sampling from
the nucleus, top-p, arXiv 1904.09751.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lorewright.adapters.lora import Rows
from lorewright.errors import ConfigError, DataError
from lorewright.models.backends.growing import Growing, binding_of
from lorewright.models.backends.reduced import Reduced
from lorewright.models.batching import n_alike, pass_tokens

SHARED_TOKENS = 24
"""Least tokens that rows of one group have in common, beyond those that all rows have."""
CACHE_BYTES = {"cpu": 768 << 20}
OTHER_CACHE_BYTES = 8 << 30
"""Most bytes of keys and values of a batch, by kind of device."""
SAVED_TOKENS = 48
"""Tokens that a shared prefix must save at least."""
LOOP_TOKENS = 16
"""A reply goes round in circles when so many of its last tokens are one part, three times over."""

LOOP_PERIOD = 24
"""Longest part, in tokens, whose repetition is noticed."""

Ends = Callable[[int, list[int]], bool]
"""(number of a reply, its ids so far) -> whether it ends here; called after every token."""
Progress = Callable[[int, int], None]
"""(tokens done, tokens to do at most)."""


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn; without it they are greedy."""

    temperature: float = 0.7
    top_p: float = 1.0
    """Only the likeliest tokens that have this much probability together are drawn."""
    n: int = 1
    """Replies to each prompt; they share the pass over it."""
    seed: int = 0
    """A reply depends on it, its prompt's index and its own number, not on the batch."""

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 < self.top_p <= 1 or self.n < 1:
            raise ConfigError(
                f"temperature is {self.temperature}, top_p {self.top_p}, n {self.n}; give a "
                "temperature above 0, top_p in (0, 1] and n of at least 1."
            )

    def uniform(self, row: int, sample: int, n_tokens: int) -> list[float]:
        """What decides every token of a reply, in [0, 1)."""
        own = zlib.crc32(f"{self.seed}/{row}/{sample}".encode())
        generator = torch.Generator().manual_seed(own)
        drawn: list[float] = torch.rand(n_tokens, generator=generator).tolist()
        return drawn

    def draw(self, logits_BV: Tensor, uniform_B: Sequence[float]) -> list[int]:
        """A token of each row."""
        p_BV = (logits_BV.float() / self.temperature).softmax(-1)
        ids_BV: Tensor | None = None
        if self.top_p < 1:
            p_BV, ids_BV = _nucleus(p_BV, self.top_p)
        sums_BV = p_BV.double().cumsum(-1)
        at_B1 = torch.tensor(uniform_B, dtype=torch.float64, device=p_BV.device)[:, None]
        chosen_B1 = torch.searchsorted(sums_BV, at_B1 * sums_BV[:, -1:], right=True)
        chosen_B1 = chosen_B1.clamp(max=p_BV.shape[-1] - 1)
        if ids_BV is not None:
            chosen_B1 = ids_BV.gather(-1, chosen_B1)
        drawn: list[int] = chosen_B1[:, 0].tolist()
        return drawn


def _nucleus(p_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that have `top_p` together: probabilities, 0 beyond, and ids."""
    n = min(256, p_BV.shape[-1])
    p_BN, ids_BN = p_BV.topk(n)
    if n < p_BV.shape[-1] and p_BN.sum(-1).min() < top_p:
        p_BN, ids_BN = p_BV.sort(-1, descending=True)
    before_BN = p_BN.cumsum(-1) - p_BN
    return p_BN.masked_fill(before_BN >= top_p, 0.0), ids_BN


def loops(ids: Sequence[int]) -> bool:
    """Whether the last tokens are one short part three times, LOOP_TOKENS long at least."""
    for period in range(1, LOOP_PERIOD + 1):
        n = max(LOOP_TOKENS, 3 * period)
        if len(ids) >= n and all(ids[-i] == ids[-i - period] for i in range(1, n - period + 1)):
            return True
    return False


@dataclass(frozen=True)
class Order:
    """What is wanted of some rows of tokens."""

    rows: Sequence[Sequence[int]]
    limits: Sequence[int]
    """Most new tokens of each."""
    guesses: Sequence[Sequence[int]] = ()
    """What each reply may be, its stop token included; checked, never taken on trust."""
    sampling: Sampling | None = None
    ends: Ends | None = None
    on_reply: Callable[[int, list[int]], None] = lambda number, ids: None
    """Called with each reply as soon as it ends."""
    progress: Progress = lambda done, total: None
    most_rows: int | None = None
    """Rows of a batch; None = as many as memory allows."""
    reduced: Reduced | None = None
    """Frozen weights in bfloat16, with which it is decoded; None = with the network's own."""

    @property
    def n_each(self) -> int:
        """Replies to each row."""
        return self.sampling.n if self.sampling else 1

    def row_of(self, reply: int) -> int:
        """The row that a reply is to."""
        return reply // self.n_each


@dataclass
class _Reply:
    """A reply that is growing."""

    number: int
    limit: int
    uniform: Sequence[float] = ()
    ids: list[int] = field(default_factory=list)


class _Work:
    """How many tokens are done, of how many at most."""

    def __init__(self, order: Order) -> None:
        each = zip(order.rows, order.limits, strict=True)
        self.order = order
        self.done, self.total = 0, sum(len(row) + order.n_each * n for row, n in each)

    def add(self, n_tokens: int) -> None:
        """So many are done."""
        self.done += n_tokens

    def skip(self, n_tokens: int) -> None:
        """So many are not needed."""
        self.total -= n_tokens

    def report(self) -> None:
        """Say so."""
        self.order.progress(self.done, self.total)


class Decoding:
    """Continues rows of tokens on one network."""

    def __init__(
        self,
        network: Any,
        body: nn.Module,
        head: nn.Module | None,
        name: str,
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        context: int,
    ) -> None:
        self.network, self.head, self.name = network, head, name
        self.stop_ids, self.pad_id, self.context = tuple(stop_ids), pad_id, context
        self.growing = Growing(body)
        self._agrees: bool | None = None

    @torch.no_grad()
    def replies(self, order: Order) -> list[list[int]]:
        """The replies in the order of the rows, those to one row together, without stop tokens.

        Raises DataError for a row without any space for a reply.
        """
        longest = max(map(len, order.rows), default=0)
        if longest >= self.context:
            raise DataError(
                f"a prompt has {longest} tokens; {self.name!r} reads at most {self.context}, reply "
                "included; shorten it."
            )
        limits = [
            min(n, self.context - len(row)) for n, row in zip(order.limits, order.rows, strict=True)
        ]
        # a reply's last token may be followed by nothing, its stop token included
        guesses = [list(guess[:n]) for guess, n in zip(order.guesses, limits, strict=False)]
        order = replace(order, limits=limits, guesses=() if order.sampling else guesses)
        run = _Grown if self._grows() else _Generated
        adapters = self._bound(len(order.rows))
        with order.reduced.within(self.network) if order.reduced else nullcontext():
            replies = run(self, order, adapters).all()
        return [replies[i] for i in range(len(order.rows) * order.n_each)]

    def _grows(self) -> bool:
        """Whether rows can grow here, tried once against the network's own numbers."""
        if self.head is None or self.growing.refusal():
            return False
        if self._agrees is None:
            self._agrees = self._tried()
        return self._agrees

    def _tried(self) -> bool:
        grow, body = self.growing, self.growing.body
        weight_VD = body.embed_tokens.weight
        generator = torch.Generator().manual_seed(0)
        ids_BT = torch.randint(len(weight_VD), (2, 8), generator=generator)
        ids_BT[1, :3] = ids_BT[0, :3]
        rows, binding = ids_BT.tolist(), binding_of(body)
        alone = Rows(torch.tensor([-1]))
        with nullcontext() if binding is None else binding.using(alone, None):
            whole_BTD = body(input_ids=ids_BT.to(weight_VD.device), use_cache=False)[0]
            grow.begin(rows[0][:3], 2, 5)
            parts_BTD = grow.add([row[3:7] for row in rows])
            last_BD = grow.step([row[7] for row in rows])
        grow.end()
        own_BTD = torch.cat((parts_BTD, last_BD[:, None]), 1)
        noise = max(1e-3, 16 * torch.finfo(whole_BTD.dtype).eps)
        moved = (own_BTD - whole_BTD[:, 3:]).abs().max()
        return bool(moved <= noise * whole_BTD.abs().max())

    def _bound(self, n_rows: int) -> list[int] | None:
        """The adapter of every row, where rows differ in that."""
        binding = binding_of(self.growing.body)
        if binding is None or binding.rows.index_B is None or binding.rows.single is not None:
            return None
        binding.rows.check(n_rows)
        adapters: list[int] = binding.rows.index_B.tolist()
        return adapters

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Logits of positions."""
        assert self.head is not None
        logits_MV: Tensor = self.head(hidden_MD)
        return logits_MV


class _Grown:
    """An order on a decoder of Llama's form."""

    def __init__(self, decoding: Decoding, order: Order, adapters: list[int] | None) -> None:
        self.decoding, self.order, self.grow = decoding, order, decoding.growing
        self.adapters = adapters
        self.work = _Work(order)
        self.replies: dict[int, list[int]] = {}
        self.first: list[Tensor] = []
        """Logits of the first tokens, where they are drawn."""

    def all(self) -> dict[int, list[int]]:
        """Every reply, by number."""
        if not self.order.rows:
            return {}
        try:
            for prefix, rows in _groups(self.order.rows, alike=self.adapters is None):
                for batch in self._batches(prefix, rows):
                    self._run(prefix, batch)
        finally:
            self.grow.end()
        return self.replies

    def _batches(self, prefix: Sequence[int], rows: Sequence[int]) -> Iterator[list[int]]:
        """Rows of similar length, as many at once as their keys and values have space for."""
        order, kind = self.order, self.grow.body.embed_tokens.weight.device.type
        n_tokens = CACHE_BYTES.get(kind, OTHER_CACHE_BYTES) // self.grow.token_bytes
        batch: list[int] = []
        width = 0
        for i in sorted(rows, key=lambda i: len(order.rows[i]) + order.limits[i]):
            width = max(width, self._width(i, prefix))
            n_rows = (len(batch) + 1) * order.n_each
            too_many = order.most_rows is not None and n_rows > order.most_rows
            if batch and (too_many or n_rows * width + len(prefix) > n_tokens):
                yield batch
                batch, width = [], self._width(i, prefix)
            batch.append(i)
        if batch:
            yield batch

    def _width(self, i: int, prefix: Sequence[int]) -> int:
        """Most own tokens that a row comes to."""
        guess = len(self.order.guesses[i]) if self.order.guesses else 0
        return len(self.order.rows[i]) - len(prefix) + max(guess, self.order.limits[i])

    def _run(self, prefix: Sequence[int], batch: Sequence[int]) -> None:
        """Replies to the rows of a batch."""
        order, grow, n_each = self.order, self.grow, self.order.n_each
        width = max(self._width(i, prefix) for i in batch)
        self.work.skip(len(prefix) * (len(batch) - 1))
        grow.begin(prefix, len(batch), width, self._passed)
        growing: list[_Reply] = []
        following: list[list[int]] = []
        budget = pass_tokens(torch.device(grow.body.embed_tokens.weight.device))
        start = 0
        while start < len(batch):
            longest = max(self._asked(i, prefix) for i in batch[start:])
            n = min(max(1, budget // longest), grow.at_once(longest))
            part = batch[start : start + n]
            following += self._read(part, prefix)
            start += n
        if n_each > 1:
            grow.spread([row for row in range(len(batch)) for _ in range(n_each)])
        for i in batch:
            for k in range(n_each):
                uniform = order.sampling.uniform(i, k, order.limits[i]) if order.sampling else ()
                growing.append(_Reply(i * n_each + k, order.limits[i], uniform))
        if order.sampling:
            following = [[] for _ in growing]
            self._draw_first(growing, following)
        live = [self._takes(reply, ids) for reply, ids in zip(growing, following, strict=True)]
        self.work.report()
        for row, reply in enumerate(growing):  # what was wrong of a guess is written over
            n_suffix = len(order.rows[order.row_of(reply.number)]) - len(prefix)
            grow.lengths[row] = n_suffix + max(0, len(reply.ids) - 1)
        while True:
            if not all(live):
                rows = grow.keep([row for row, goes_on in enumerate(live) if goes_on])
                growing = [growing[row] for row in rows]
            if not growing:
                return
            hidden_BD = grow.step([reply.ids[-1] for reply in growing])
            logits_BV = self.decoding.logits(hidden_BD)
            if order.sampling:
                at_B = [reply.uniform[len(reply.ids)] for reply in growing]
                ids = order.sampling.draw(logits_BV, at_B)
            else:
                ids = logits_BV.argmax(-1).tolist()
            live = [self._takes(reply, [i]) for reply, i in zip(growing, ids, strict=True)]
            self.work.report()

    def _passed(self, n_tokens: int) -> None:
        self.work.add(n_tokens)
        self.work.report()

    def _asked(self, i: int, prefix: Sequence[int]) -> int:
        """Tokens of a row in the pass over its prompt and guess."""
        guess = len(self.order.guesses[i]) if self.order.guesses else 0
        return len(self.order.rows[i]) - len(prefix) + guess

    def _read(self, rows: Sequence[int], prefix: Sequence[int]) -> list[list[int]]:
        """Pass over prompts and guesses: what greedy decoding gives of each guess and one more."""
        order = self.order
        guesses = [list(order.guesses[i]) if order.guesses else [] for i in rows]
        texts = [
            [*order.rows[i][len(prefix) :], *guess] for i, guess in zip(rows, guesses, strict=True)
        ]
        adapters = [self.adapters[i] for i in rows] if self.adapters else []
        hidden_BTD = self.grow.add(texts, adapters)
        at = [
            (row, len(text) - len(guess) - 1 + t)
            for row, (text, guess) in enumerate(zip(texts, guesses, strict=True))
            for t in range(len(guess) + 1)
        ]
        row_M, position_M = torch.tensor(at, device=hidden_BTD.device).T
        logits_MV = self.decoding.logits(hidden_BTD[row_M, position_M])
        if order.sampling:
            self.first.append(logits_MV)
        best = iter(logits_MV.argmax(-1).tolist())
        following = []
        for guess in guesses:
            given = [next(best) for _ in range(len(guess) + 1)]
            following.append(given[: n_alike(given, guess) + 1])
        self.work.add(sum(len(order.rows[i]) - len(prefix) for i in rows))
        self.work.report()
        return following

    def _draw_first(self, growing: Sequence[_Reply], following: list[list[int]]) -> None:
        """The first token of every reply, from the pass over the prompts."""
        assert self.order.sampling is not None
        logits_BV = torch.cat(self.first).repeat_interleave(self.order.n_each, 0)
        drawn = self.order.sampling.draw(logits_BV, [reply.uniform[0] for reply in growing])
        for ids, i in zip(following, drawn, strict=True):
            ids.append(i)
        self.first.clear()

    def _takes(self, reply: _Reply, ids: Sequence[int]) -> bool:
        """Append tokens to a reply; return whether it goes on."""
        for i in ids:
            self.work.add(1)
            stopped, ends = i in self.decoding.stop_ids, self.order.ends
            if not stopped:
                reply.ids.append(i)
            if stopped or len(reply.ids) >= reply.limit or (ends and ends(reply.number, reply.ids)):
                self.replies[reply.number] = reply.ids
                self.work.skip(reply.limit - len(reply.ids) - stopped)
                self.order.on_reply(reply.number, reply.ids)
                return False
        return True


def _groups(
    rows: Sequence[Sequence[int]], *, alike: bool
) -> Iterator[tuple[Sequence[int], list[int]]]:
    """Prefixes and the rows that begin with each; every row is longer than its prefix.

    Rows that have SHARED_TOKENS more in common than all rows have are a group of their own.
    """
    if not alike:
        yield (), list(range(len(rows)))
        return
    in_order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    n_all = _n_common(rows[in_order[0]], rows[in_order[-1]])
    common = [_n_common(rows[i], rows[k]) for i, k in pairwise(in_order)]
    group, others = in_order[:1], list[int]()
    n_group = 0
    for n, i in zip([*common, 0], [*in_order[1:], -1], strict=True):
        if i >= 0 and n >= n_all + SHARED_TOKENS:
            n_group = min(n, n_group or n)
            group.append(i)
            continue
        if len(group) > 1:
            yield _worthwhile(rows[group[0]][:n_group], len(group)), group
        else:
            others += group
        group, n_group = [i], 0
    if others:
        n_all = min(n_all, *(len(rows[i]) - 1 for i in others))
        yield _worthwhile(rows[others[0]][:n_all], len(others)), others


def _worthwhile(prefix: Sequence[int], n_rows: int) -> Sequence[int]:
    """A prefix that saves more than the pass over it costs, or none."""
    return prefix if len(prefix) * (n_rows - 1) >= SAVED_TOKENS else ()


def _n_common(one: Sequence[int], two: Sequence[int]) -> int:
    """Tokens with which both begin, less one where that is all of either."""
    return min(n_alike(one, two), len(one) - 1, len(two) - 1)


class _Generated:
    """An order in transformers' `generate`: batches padded on the left."""

    def __init__(self, decoding: Decoding, order: Order, adapters: list[int] | None) -> None:
        self.decoding, self.order, self.adapters = decoding, order, adapters
        self.work = _Work(order)
        self.replies: dict[int, list[int]] = {}

    def all(self) -> dict[int, list[int]]:
        """Every reply, by number."""
        rows, group = self.order.rows, list[int]()
        size = self.order.most_rows or 32
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            cramped = len(rows[i]) + self.order.limits[i] >= self.decoding.context
            other = bool(group) and (
                (cramped and len(rows[i]) > len(rows[group[0]]))
                or self.order.limits[i] != self.order.limits[group[0]]
            )
            if len(group) * self.order.n_each >= size or other:
                self._run(group)
                group = []
            group.append(i)
        if group:
            self._run(group)
        return self.replies

    def _run(self, group: Sequence[int]) -> None:
        from transformers.generation.stopping_criteria import StoppingCriteriaList

        order, device = self.order, next(self.decoding.network.parameters()).device
        numbers = [i * order.n_each + k for i in group for k in range(order.n_each)]
        rows = [order.rows[order.row_of(number)] for number in numbers]
        width, limit = max(map(len, rows)), order.limits[group[0]]
        padded = [[self.decoding.pad_id] * (width - len(row)) + list(row) for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        self.work.add(sum(len(order.rows[i]) for i in group))
        ended: set[int] = set()

        def criteria(ids_BT: Tensor, scores: Any, **_: Any) -> Tensor:
            flags = []
            for number, ids in zip(numbers, ids_BT[:, width:].tolist(), strict=True):
                if number not in ended:
                    self._grew(number, ids, limit, ended)
                flags.append(number in ended)
            self.work.report()
            return torch.tensor(flags, device=ids_BT.device)

        binding = binding_of(self.decoding.growing.body)
        with ExitStack() as during:
            if self.adapters and binding is not None:
                own = [self.adapters[order.row_of(number)] for number in numbers]
                own_rows = Rows(torch.tensor(own), binding.rows.n_adapters)
                during.enter_context(binding.using(own_rows, None))
            if order.sampling:
                during.enter_context(torch.random.fork_rng())
                torch.manual_seed(zlib.crc32(f"{order.sampling.seed}/{group[0]}".encode()))
            self.decoding.network.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=self._config(limit),
                stopping_criteria=StoppingCriteriaList([criteria]),
            )

    def _grew(self, number: int, ids: list[int], limit: int, ended: set[int]) -> None:
        """Take a reply that has another token; note it when it ends."""
        self.work.add(1)
        stopped = ids[-1] in self.decoding.stop_ids
        reply = ids[:-1] if stopped else ids
        ends = self.order.ends
        if stopped or len(reply) >= limit or (ends and ends(number, reply)):
            ended.add(number)
            self.replies[number] = reply
            self.work.skip(limit - len(reply) - stopped)
            self.order.on_reply(number, reply)

    def _config(self, limit: int) -> Any:
        from transformers.generation.configuration_utils import GenerationConfig

        # generate() takes from the network's own whatever is not set, and penalties that models
        # ship with would break the certificate of greedy decoding.
        self.decoding.network.generation_config = GenerationConfig()
        sampling = self.order.sampling
        drawn: dict[str, Any] = {}
        if sampling:
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(
            do_sample=sampling is not None,
            num_beams=1,
            max_new_tokens=limit,
            eos_token_id=list(self.decoding.stop_ids),
            pad_token_id=self.decoding.pad_id,
            **drawn,
        )
