"""Decoding on shared rows: all samples of a prompt write behind it in one row of the memory and read it there.

The running samples go through the model as one row of N tokens, without padding. Only attention arranges them by
memory row: a row's samples are its queries, and a mask hides what the others wrote. With grouped-query attention the
heads that share keys are queries of these, too (``transformers`` would copy the keys for each), so that a step reads
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
"""Rows without a running sample leave once the others are at most this part of the batch: to move a row (an exchange
of two rows in all layers) costs about as much as a few steps' reading of it."""
_ALIGNMENT = 16
"""Keys are read in multiples of it: CUDA's attention kernels would otherwise copy the mask in every layer."""


class SharedRows:
    """Rows 0 … R - 1 of ``cache``, which hold R prompts, and where the prompts' samples stand in them.

    Args:
        lengths: tokens of each prompt (R,).
        counts: samples of each prompt, at least one (R,). Samples are numbered prompt by prompt: S in all.
        groups: heads that share their keys and values.
    """

    def __init__(self, cache: RowCache, lengths: Ints, counts: Ints, groups: int, dtype: torch.dtype) -> None:
        self._cache = cache
        self._lengths = lengths
        self._groups = groups
        self._prompts = np.arange(len(lengths)).repeat(counts)  # (S,) sample → prompt
        self.rows: Ints = np.arange(len(lengths))
        """The row that each prompt lies in (R,)."""
        self._free = lengths.copy()  # (R,) the first free place of each prompt's row
        self._fed = 0
        ends = torch.from_numpy(lengths[self._prompts]).to(cache.device)
        places = torch.arange(cache.capacity, device=cache.device)
        self._seen = additive_mask(places < ends[:, None], dtype)  # (S, capacity) what each sample sees
        self._height = len(lengths)
        self._arrange(np.arange(len(self._prompts)))

    def keep(self, samples: Ints) -> None:
        """Only ``samples`` (N,) run on; rows are exchanged if few enough of them have a running one."""
        running = np.unique(self._prompts[samples])
        if len(running) <= _LEAVE_AT * self._height:
            self._gather(running)
        self._arrange(samples)

    def feed(self) -> dict[str, Any]:
        """A place for the next token of each running sample: what the model needs to know beside the tokens (1, N)."""
        places = self._free[self._of] + self._ranks
        self._free += self._counts
        width = min(-(-int(self._free[self._of].max()) // _ALIGNMENT) * _ALIGNMENT, self._cache.capacity)
        positions = self._lengths[self._of] + self._fed
        self._fed += 1
        sent = torch.from_numpy(np.stack([positions, places])).to(self._cache.device, non_blocking=True)
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
        """Give each running sample its slot in a grid of B rows with Q queries each; what is over repeats the first."""
        self._of = self._prompts[samples]  # (N,)
        self._counts = np.bincount(self._of, minlength=len(self._lengths))  # (R,)
        starts = self._counts.cumsum() - self._counts
        self._ranks = np.arange(len(samples)) - starts[self._of]  # (N,) among the running ones of its prompt
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
        """Bring the prompts ``running`` into the first rows."""
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
    """Within, the model's attention expects what :meth:`SharedRows.feed` gives."""
    config: Any = _decoder_config(model)
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
    """Attention of ``query`` (1, heads, N, D) over memory rows (B, key heads, W, D), with a mask
    (B, 1, groups · Q, W): (1, N, heads, D)."""
    for changed in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(changed) is not None:
            raise UnsupportedModelError(f"{type(module).__name__} has a {changed} in its attention: not supported")
    grid, slots = shared_rows
    height, key_heads, _, size = key.shape
    groups, queries = query.shape[1] // key_heads, len(grid) // height
    by_row = query[0, :, grid].view(key_heads, groups, height, queries, size).permute(2, 0, 1, 3, 4)
    attended = scaled_dot_product_attention(
        by_row.reshape(height, key_heads, groups * queries, size), key, value, attn_mask=attention_mask, scale=scaling
    )
    by_slot = attended.view(height, key_heads, groups, queries, -1).permute(0, 3, 1, 2, 4)
    return by_slot.reshape(height * queries, query.shape[1], -1)[slots][None], None


def _decoder_config(model: nn.Module) -> Any:
    return decoder_of(model).config


AttentionInterface.register(_NAME, _attend)
