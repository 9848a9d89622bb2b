"""Which examples an epoch visits, in which order and in which batches.

Everything is a function of (seed, epoch) and of what is passed in, so that an interrupted write
goes on with the same batches.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

import torch

from lorewright.errors import ConfigError

SPAN = 8
"""Batches' worth of examples that are sorted by length together: little padding, still shuffled."""
EASY_FIRST = 1 / 3
"""Share of the budget in which `curriculum` goes from easy to hard."""

PASS_TOKENS = {"cpu": 2048}
"""Padded tokens of a pass without gradients, by kind of device, where not OTHER_TOKENS: a CPU is
quickest on what its caches hold."""
OTHER_TOKENS = 8192

Order = Callable[[list[int], float, Sequence[float]], list[int]]
"""(shuffled examples, share of the budget done, measured loss of every example) -> examples."""


def shuffled(examples: list[int], done: float, nats: Sequence[float]) -> list[int]:
    """As they were drawn."""
    return examples


def easy_first(examples: list[int], done: float, nats: Sequence[float]) -> list[int]:
    """By measured loss while less than a third of the budget is spent; nothing is left out.

    The temporal half of MemFT-SW (arXiv 2605.30260), which says simpler first; its released code
    permutes at random and drops the tail.
    """
    return sorted(examples, key=lambda i: nats[i]) if done < EASY_FIRST else examples


def pass_tokens(device: torch.device) -> int:
    """Padded tokens that a pass without gradients takes at most."""
    return PASS_TOKENS.get(device.type, OTHER_TOKENS)


def n_alike(one: Sequence[int], two: Sequence[int]) -> int:
    """Tokens with which both begin; of many rows, all begin with what the first and the last in
    order have in common."""
    pairs = zip(one, two, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def n_first_alike(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens with which all prompts begin, but for their last one, which is queried; 0 of one."""
    shortest = min(map(len, prompts))
    if len(prompts) < 2 or not shortest:
        return 0
    return min(n_alike(min(prompts), max(prompts)), shortest - 1)


FEWEST_SHARED = 8
SAVING = 0.2
"""What prompts share runs once from so many tokens and so large a part of a pass on."""


def worth_sharing(prompts: Sequence[tuple[int, ...]], n_longest: int, n_blocks: int = 1) -> int:
    """Tokens that are to run once in a pass over rows of these prompts, for each block of an
    adapter; 0 where that saves little.

    `n_longest` is the length of the longest row, completion included.
    """
    n_shared = n_first_alike(prompts)
    saved = n_shared * (len(prompts) - n_blocks)
    enough = saved >= SAVING * len(prompts) * n_longest
    return n_shared if n_shared >= FEWEST_SHARED and enough else 0


def by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of similar length, of at most `budget` padded tokens or of one alone."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and lengths[i] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


ORDERS: dict[str, Order] = {"shuffle": shuffled, "curriculum": easy_first}


def batches(
    lengths: Sequence[int],
    examples: Sequence[int],
    *,
    size: int,
    seed: int,
    epoch: int,
    order: str = "shuffle",
    done: float = 0.0,
    nats: Sequence[float] = (),
) -> list[list[int]]:
    """Cut `examples` (indices into `lengths`, in tokens) into batches of at most `size`.

    Every one occurs once. Shuffled by (seed, epoch), sorted by length within a span of batches, and
    the batches shuffled again; an order that sorts keeps its batches in that order. Raises
    ConfigError for an unknown order.
    """
    if order not in ORDERS:
        raise ConfigError(f"order {order!r} is unknown; use one of {', '.join(ORDERS)}.")
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{epoch}".encode()))
    drawn = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    ordered = ORDERS[order](drawn, done, nats)
    if ordered is not drawn:
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]
    span = SPAN * size
    chunks = [
        sorted(drawn[i : i + span], key=lambda i: lengths[i]) for i in range(0, len(drawn), span)
    ]
    groups = [chunk[i : i + size] for chunk in chunks for i in range(0, len(chunk), size)]
    return [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
