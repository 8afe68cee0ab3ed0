"""Key-value memory in rows: one row a sequence, written at any place of any row: ragged batches need no shifting.

A row's stale entries lie above its length; no query ever looks there, and the row's next tokens overwrite them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

_GRANULE = 64
"""Capacities are multiples of it (tokens)."""


class RowLayer(CacheLayerMixin):
    """One layer's keys and values, (R, heads, capacity + 1, head size): the last place takes what padding writes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers' own lacks annotations
        self.rows: slice | Tensor = slice(0, 0)
        self.index = torch.empty(0, dtype=torch.long)  # (B, 1)
        self.places = torch.empty(0, dtype=torch.long)  # (B, Q)
        self.width = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("a RowLayer is allocated by its RowCache")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        self.keys[self.index, :, self.places] = key_states.transpose(1, 2)
        self.values[self.index, :, self.places] = value_states.transpose(1, 2)
        return self.keys[self.rows, :, : self.width], self.values[self.rows, :, : self.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.width, 0

    def get_seq_length(self) -> int:
        """Where transformers' own mask begins: it makes one for rows filled from the beginning alone."""
        return 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the method's name before transformers 5.13


class RowCache(Cache):
    """The layers' rows. ``look_at`` chooses the rows and places of the next forward pass.

    Args:
        model: what it caches for (a plain transformers model).
        rows, capacity: sequences, and tokens of each, to begin with. :meth:`reserve` grows both.
    """

    def __init__(self, model: PreTrainedModel, rows: int = 0, capacity: int = 0) -> None:
        config = model.config.get_text_config()
        self._heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        self._head_size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self._dtype, self.device = model.dtype, model.device
        self.rows = self.capacity = 0
        self._layers = [RowLayer() for _ in range(config.num_hidden_layers)]
        super().__init__(layers=list(self._layers))
        self.reserve(rows, capacity)

    def row_bytes(self, capacity: int) -> int:
        """Bytes that one row of ``capacity`` tokens takes in all layers."""
        size = torch.empty((), dtype=self._dtype).element_size()
        return 2 * len(self._layers) * self._heads * (_round_up(capacity) + 1) * self._head_size * size

    def reserve(self, rows: int, capacity: int) -> None:
        """Grow to at least ``rows`` × ``capacity``; what is there stays."""
        rows, capacity = max(rows, self.rows), _round_up(max(capacity, self.capacity))
        if rows == self.rows and capacity == self.capacity:
            return
        shape = (rows, self._heads, capacity + 1, self._head_size)
        for layer in self._layers:
            grown = [torch.zeros(shape, dtype=self._dtype, device=self.device) for _ in range(2)]
            if layer.keys is not None and layer.values is not None:
                for new, old in zip(grown, (layer.keys, layer.values), strict=True):
                    new[: self.rows, :, : self.capacity] = old[:, :, : self.capacity]
            layer.keys, layer.values = grown
            layer.is_initialized = True
        self.rows, self.capacity = rows, capacity

    def look_at(self, rows: slice | Tensor, index: Tensor, places: Tensor, width: int) -> None:
        """The next forward pass writes rows ``index`` (B, 1) at ``places`` (B, Q) and reads the first ``width`` places
        of ``rows``: the same rows, as a slice where they are neighbours (a view, not a copy)."""
        for layer in self._layers:
            layer.rows, layer.index, layer.places, layer.width = rows, index, places, width

    def swap(self, left: Tensor, right: Tensor, width: int) -> None:
        """Exchange the first ``width`` places of rows ``left`` (N,) with those of ``right`` (N,)."""
        both, other = torch.cat([left, right]), torch.cat([right, left])
        for layer in self._layers:
            for states in (layer.keys, layer.values):
                assert states is not None
                states[both, :, :width] = states[other, :, :width]


def _round_up(capacity: int) -> int:
    return -(-capacity // _GRANULE) * _GRANULE
