"""Decoding on shared rows: all samples of a prompt write behind it in one row of the cache, and read it there.

The running samples go through the model as one row of N tokens, without padding. Only attention arranges them by cache
row: a row's samples are its queries, and a mask hides what the others wrote. With grouped-query attention, heads that
share keys become further queries of these keys (``transformers`` would copy the keys for each head), so a step reads
every key once and copies none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from retro.models.backbone import SHARED_ATTENTION, UnsupportedModelError, additive_mask, decoder_of
from retro.models.cache import RowCache
from retro.models.running import Ints

_NAME = SHARED_ATTENTION[1]
_LEAVE_AT = 0.5
"""Rows without a running sample leave once the others are at most this fraction of the batch. Moving a row (swapping
two rows in all layers) costs about as much as reading it for a few steps."""
_ALIGNMENT = 16
"""Keys are read in multiples of this number; else CUDA's attention kernels would copy the mask in every layer."""


class SharedRows:
    """Rows 0 … R - 1 of ``cache``, which hold R prompts, and the positions of the prompts' samples in them.

    Args:
        lengths: tokens of each prompt (R,).
        counts: samples of each prompt, at least one (R,). All S samples are numbered prompt by prompt.
        groups: heads that share their keys and values.
    """

    def __init__(self, cache: RowCache, lengths: Ints, counts: Ints, groups: int, dtype: torch.dtype) -> None:
        self._cache = cache
        self._lengths = lengths
        self._groups = groups
        self._prompts = np.arange(len(lengths)).repeat(counts)  # (S,) sample → prompt
        self.rows: Ints = np.arange(len(lengths))
        """The row of each prompt (R,)."""
        self._free = lengths.copy()  # (R,) the first free slot of each prompt's row
        self._fed = 0
        ends = torch.from_numpy(lengths[self._prompts]).to(cache.device)
        all_slots = torch.arange(cache.capacity, device=cache.device)
        self._seen = additive_mask(all_slots < ends[:, None], dtype)  # (S, capacity) what each sample sees
        self._height = len(lengths)
        self._arrange(np.arange(len(self._prompts)))

    def keep(self, samples: Ints) -> None:
        """Continue only with ``samples`` (N,); swap rows if few enough of them still have a running sample."""
        running = np.unique(self._prompts[samples])
        if len(running) <= _LEAVE_AT * self._height:
            self._gather(running)
        self._arrange(samples)

    def feed(self) -> dict[str, Any]:
        """Reserve a slot for the next token of each running sample; return the model's inputs beside the tokens."""
        slots = self._free[self._of] + self._ranks
        self._free += self._counts
        width = min(-(-int(self._free[self._of].max()) // _ALIGNMENT) * _ALIGNMENT, self._cache.capacity)
        positions = self._lengths[self._of] + self._fed
        self._fed += 1
        sent = torch.from_numpy(np.stack([positions, slots])).to(self._cache.device, non_blocking=True)
        self._cache.look_at(slice(0, self._height), self._row[None], sent[1:], width)
        self._seen[self._sample, sent[1]] = 0
        mask = self._seen[self._queries, :width].view(self._height, 1, -1, width)  # (B, groups · Q, W)
        return {
            "position_ids": sent[:1],
            "attention_mask": mask,
            "past_key_values": self._cache,
            "use_cache": True,
            "shared_rows": (self._grid, self._slots),
        }

    def _arrange(self, samples: Ints) -> None:
        """Give each running sample a cell in a grid of B rows with Q queries each; unused cells repeat the first."""
        self._of = self._prompts[samples]  # (N,)
        self._counts = np.bincount(self._of, minlength=len(self._lengths))  # (R,)
        starts = self._counts.cumsum() - self._counts
        self._ranks = (
            np.arange(len(samples)) - starts[self._of]
        )  # (N,) the sample's number among its prompt's running ones
        rows = self.rows[self._of]
        queries = int(self._counts.max())
        slots = rows * queries + self._ranks
        grid = np.zeros(self._height * queries, dtype=np.int64)
        grid[slots] = np.arange(len(samples))
        device = self._cache.device
        sent = torch.from_numpy(np.concatenate([samples, rows, slots, grid])).to(device, non_blocking=True)
        self._sample, self._row, self._slots, self._grid = sent.split([len(samples)] * 3 + [len(grid)])
        by_row = self._sample[self._grid].view(self._height, 1, queries)
        self._queries = by_row.expand(-1, self._groups, -1).reshape(-1)  # (B · groups · Q,) sample of each query

    def _gather(self, running: Ints) -> None:
        """Move the prompts ``running`` to the first rows."""
        height = len(running)
        occupant = np.argsort(self.rows)  # row → prompt
        movers = running[self.rows[running] >= height]
        holes = np.setdiff1d(np.arange(height), self.rows[running])
        others = occupant[holes]
        if len(movers):
            width = int(self._free[np.concatenate([movers, others])].max())
            sent = torch.from_numpy(np.stack([self.rows[movers], holes])).to(self._cache.device)
            self._cache.swap(sent[0], sent[1], width)
            self.rows[others], self.rows[movers] = self.rows[movers], holes
        self._height = height


@contextmanager
def attention_on_shared_rows(model: nn.Module) -> Iterator[None]:
    """Inside this context, the model's attention expects the inputs of :meth:`SharedRows.feed`."""
    config: Any = decoder_of(model).config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def query_groups(model: PreTrainedModel) -> int:
    """Query heads for each head of keys and values."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    return heads // int(getattr(config, "num_key_value_heads", None) or heads)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    *,
    shared_rows: Sequence[Tensor],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` (1, heads, N, D) over cache rows (B, key heads, W, D), with a mask (B, 1, groups · Q, W).

    Returns:
        (1, N, heads, D)
    """
    for changed in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(changed) is not None:
            raise UnsupportedModelError(f"{type(module).__name__} has a {changed} in its attention, not supported here")
    grid, slots = shared_rows
    height, key_heads, _, size = key.shape
    groups, queries = query.shape[1] // key_heads, len(grid) // height
    by_row = query[0, :, grid].view(key_heads, groups, height, queries, size).permute(2, 0, 1, 3, 4)
    attended = scaled_dot_product_attention(
        by_row.reshape(height, key_heads, groups * queries, size), key, value, attn_mask=attention_mask, scale=scaling
    )
    by_slot = attended.view(height, key_heads, groups, queries, -1).permute(0, 3, 1, 2, 4)
    return by_slot.reshape(height * queries, query.shape[1], -1)[slots][None], None


AttentionInterface.register(_NAME, _attend)
