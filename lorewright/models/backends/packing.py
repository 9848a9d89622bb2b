"""Rows of a batch as one run of tokens, in which what rows begin with alike lies once.

A block is the rows of one adapter. Of every block come first the tokens that its rows share, then
those of each row: K (P + b S) tokens in place of B T. Everything but attention works token by token
and never sees rows.

Shape letters: B row, T token, C queried position, M tokens that run, K blocks of rows, b rows of a
block, P shared token, S token of a row's own, X values of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Packing:
    """Where the tokens of B rows of T tokens lie, the first `n_shared` of them once a block."""

    def __init__(self, n_rows: int, n_tokens: int, n_shared: int, n_blocks: int) -> None:
        self.n_rows, self.n_tokens, self.n_shared, self.n_blocks = (
            n_rows,
            n_tokens,
            n_shared,
            n_blocks,
        )
        self.block_rows = n_rows // n_blocks
        self.n_own = n_tokens - n_shared
        self.block_tokens = n_shared + self.block_rows * self.n_own

    def pack(self, x_BTX: Tensor) -> Tensor:
        """The tokens that run (M, ...), of every row's first T."""
        x_BTX = x_BTX[:, : self.n_tokens]
        if not self.n_shared:
            return x_BTX.flatten(0, 1)
        own = x_BTX[:, self.n_shared :].unflatten(0, (self.n_blocks, -1)).flatten(1, 2)
        return torch.cat([x_BTX[:: self.block_rows, : self.n_shared], own], 1).flatten(0, 1)

    def shared(self, x_MX: Tensor) -> Tensor:
        """A view of what rows share (K, P, ...)."""
        return x_MX.unflatten(0, (self.n_blocks, self.block_tokens))[:, : self.n_shared]

    def own(self, x_MX: Tensor) -> Tensor:
        """A view of each row's own (K, b, S, ...)."""
        blocks = x_MX.unflatten(0, (self.n_blocks, self.block_tokens))[:, self.n_shared :]
        return blocks.unflatten(1, (self.block_rows, self.n_own))

    def by_block(self, x_XBX: Tensor) -> Tensor:
        """A view with the rows on the second axis block by block: (X, K, b, ...)."""
        return x_XBX.unflatten(1, (self.n_blocks, self.block_rows))

    def index(self, position_BC: Tensor) -> Tensor:
        """Where positions of rows' own tokens lie among those that run (B C)."""
        row_B1 = torch.arange(self.n_rows)[:, None]
        block_B1 = row_B1 // self.block_rows
        # Row after row, with one part that is shared before those of each block.
        first_B1 = row_B1 * self.n_own + block_B1 * self.n_shared
        return (first_B1 + position_BC).flatten()
