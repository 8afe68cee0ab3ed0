"""Keys and values in blocks of rows: one row a sequence, written at any place of it, so that nothing is ever shifted.

A row's stale entries lie above its length; no query ever looks there, and the row's next tokens overwrite them. A
sequence that outgrows its row moves to one that is half as long again, so that a token is copied about twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

_GRANULE = 64
"""Capacities are multiples of it (tokens)."""
_GROWTH = 1.5
"""How much longer the rows of the next capacity are."""
_LAYER_BYTES = {"cpu": 2**24}
"""What a block takes of each layer, at most: it is given back as a whole, and attended to by calls of its own."""
_OTHER_LAYER_BYTES = 2**28
"""The same on devices where a call costs more than what it reads."""


@dataclass(frozen=True, slots=True)
class TokenShape:
    """What a model keeps of a token."""

    layers: int
    heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: PreTrainedModel) -> TokenShape:
        """Of a plain transformers model."""
        config = model.config.get_text_config()
        queries = getattr(config, "num_attention_heads", None) or 1  # a model without attention keeps no token
        heads = int(getattr(config, "num_key_value_heads", None) or queries)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // queries)
        return cls(config.num_hidden_layers, heads, size, model.dtype, model.device)

    @property
    def layer_bytes(self) -> int:
        """Bytes of a token's key and value in one layer."""
        return 2 * self.heads * self.head_size * self.dtype.itemsize

    def row_bytes(self, tokens: int) -> int:
        """Bytes of a row that is just long enough for ``tokens``, in all layers."""
        return self.layers * self.layer_bytes * _round_up(tokens)


class Block:
    """R rows of ``capacity`` tokens each, in every layer."""

    def __init__(self, shape: TokenShape, rows: int, capacity: int) -> None:
        self.capacity = _round_up(capacity)
        size = (rows, shape.heads, self.capacity, shape.head_size)
        self.keys, self.values = (
            [torch.zeros(size, dtype=shape.dtype, device=shape.device) for _ in range(shape.layers)] for _ in range(2)
        )  # a layer: (R, heads, capacity, head size)
        self.rows: list[Row | None] = [None] * rows
        """Who has which row."""
        self._row_bytes = shape.row_bytes(capacity)

    @property
    def nbytes(self) -> int:
        return len(self.rows) * self._row_bytes

    @property
    def used(self) -> int:
        return sum(row is not None for row in self.rows)

    def take(self) -> Row:
        """The first free row."""
        row = Row(self, self.rows.index(None))
        self.rows[row.index] = row
        return row

    def shrink(self) -> None:
        """Keep only the rows that somebody has; layer by layer, so that little more memory is needed meanwhile."""
        kept = [row for row in self.rows if row is not None]
        for states in (self.keys, self.values):
            for layer, whole in enumerate(states):
                states[layer] = whole[[row.index for row in kept]]
        self.rows = list(kept)
        for index, row in enumerate(kept):
            row.index = index


@dataclass(eq=False, slots=True)
class Row:
    """Where a sequence lies; :class:`RowPool` may move it."""

    block: Block
    index: int

    def copy_to(self, other: Row, tokens: int) -> None:
        """Copy the first ``tokens`` places to ``other``."""
        for ours, theirs in ((self.block.keys, other.block.keys), (self.block.values, other.block.values)):
            for source, target in zip(ours, theirs, strict=True):
                target[other.index, :, :tokens] = source[self.index, :, :tokens]


class RowPool:
    """Rows of several capacities that together take at most ``budget`` bytes.

    A block is given back when its last row is. Blocks of one capacity grow in number of rows with the demand.
    """

    def __init__(self, shape: TokenShape, budget: int) -> None:
        self.shape, self.budget = shape, budget
        self._blocks: dict[int, list[Block]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that all blocks take."""
        return sum(block.nbytes for blocks in self._blocks.values() for block in blocks)

    def capacity(self, tokens: int) -> int:
        """The least of the capacities 64, 128, 192, 320, 512, 768 … that holds so many tokens."""
        capacity = _GRANULE
        while capacity < tokens:
            capacity = _round_up(int(capacity * _GROWTH))
        return capacity

    def take(self, capacity: int, rows: int = 1, beyond_budget: bool = False) -> Row | None:
        """A row of ``capacity``; None where there is no room for one.

        Args:
            rows: how many are about to be taken; a block is made for all of them if it can be.
            beyond_budget: make room for this one in any case.
        """
        blocks = self._blocks.setdefault(capacity, [])
        for block in blocks:
            if block.used < len(block.rows):
                return block.take()
        one = self.shape.row_bytes(capacity)
        limit = _LAYER_BYTES.get(self.shape.device.type, _OTHER_LAYER_BYTES) // (self.shape.layer_bytes * capacity)
        while self.nbytes + one > self.budget and self._compact():
            pass
        room = (self.budget - self.nbytes) // one
        ample = max(rows, sum(len(block.rows) for block in blocks))
        rows = min(limit, ample if ample <= room else rows, room)
        if room < 1 and not beyond_budget:
            return None
        blocks.append(Block(self.shape, max(rows, 1), capacity))
        return blocks[-1].take()

    def give(self, row: Row) -> None:
        """Take a row back."""
        row.block.rows[row.index] = None
        if not row.block.used:
            self._blocks[row.block.capacity].remove(row.block)

    def _compact(self) -> bool:
        """Give back the free rows of the block that has most of them, if any has one."""
        blocks = [block for blocks in self._blocks.values() for block in blocks]
        emptiest = max(blocks, key=lambda block: (len(block.rows) - block.used) * block.capacity, default=None)
        if emptiest is None or emptiest.used == len(emptiest.rows):
            return False
        emptiest.shrink()
        return True


def _round_up(tokens: int) -> int:
    return -(-tokens // _GRANULE) * _GRANULE
