"""Attention of a pass whose tokens belong to rows of the key-value cache: decoding, and the feeding of prompts.

All tokens of a pass go through the model as one row of N tokens, without padding. Only attention arranges them: the
neighbouring rows of a block are a part, a row's tokens are its queries, and a mask hides what they do not see. With
grouped-query attention the heads that share keys are queries of these, too (``transformers`` would copy the keys for
each), so that a step reads every key once and copies none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from retro.models.backbone import SHARED_ATTENTION, UnsupportedModelError, decoder_of, hidden_states, plain_model
from retro.models.cache import Block

_NAME = SHARED_ATTENTION[1]


@dataclass(frozen=True, slots=True)
class Part:
    """B neighbouring rows of a block, and the n tokens of a pass that belong to them, Q a row at most."""

    block: Block
    rows: slice
    tokens: slice
    """Of the pass."""
    index: Tensor  # (n,) the row of the block that each token is written to
    places: Tensor  # (n,) its place there
    queries: int
    """Q."""
    grid: Tensor | None  # (B · Q,) the token that each query is; None: one after another
    slots: Tensor | None  # (n,) the query that each token is
    width: int
    """Places that are read."""
    mask: Tensor | None  # (B, 1, groups · Q, width) additive; None: everything is seen, or what ``causal`` says
    causal: bool = False
    """Rows that are fed from their beginning: each query sees the places up to its own."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Write the keys and values (n, key heads, D) and attend with the queries (heads, n, D): (n, heads, D)."""
        keys, values = self.block.keys[layer], self.block.values[layer]
        keys[self.index, :, self.places] = key
        values[self.index, :, self.places] = value
        keys, values = keys[self.rows, :, : self.width], values[self.rows, :, : self.width]
        height, key_heads, _, size = keys.shape
        groups = len(query) // key_heads
        if self.grid is not None:
            query = query[:, self.grid]
        if self.causal:
            by_row = query.view(-1, height, self.queries, size).transpose(0, 1)  # (B, heads, Q, D)
            attended = scaled_dot_product_attention(
                by_row, keys, values, is_causal=True, scale=scaling, enable_gqa=groups > 1
            )
            by_token = attended.transpose(1, 2)
        else:
            by_row = query.view(key_heads, groups, height, self.queries, size).permute(2, 0, 1, 3, 4)
            by_row = by_row.reshape(height, key_heads, groups * self.queries, size)
            attended = scaled_dot_product_attention(by_row, keys, values, attn_mask=self.mask, scale=scaling)
            by_token = attended.view(height, key_heads, groups, self.queries, -1).permute(0, 3, 1, 2, 4)
        by_token = by_token.reshape(height * self.queries, len(query), -1)
        return by_token if self.slots is None else by_token[self.slots]


def feed(model: nn.Module, tokens: Tensor, positions: Tensor, parts: Sequence[Part]) -> Tensor:
    """The hidden states (N, H) of a pass of ``tokens`` (N,) at ``positions`` (N,), which belong to ``parts`` in order;
    their keys and values are written."""
    with _attention_on_rows(model):
        hidden = hidden_states(
            model,
            input_ids=tokens[None],
            position_ids=positions[None],
            attention_mask=torch.zeros(
                1, 1, 1, 1, dtype=plain_model(model).dtype, device=tokens.device
            ),  # no other one
            use_cache=False,
            parts=parts,
        )
    return hidden[0]


def query_groups(model: PreTrainedModel) -> int:
    """Query heads for each head of keys and values."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    return heads // int(getattr(config, "num_key_value_heads", None) or heads)


@contextmanager
def _attention_on_rows(model: nn.Module) -> Iterator[None]:
    config: Any = decoder_of(model).config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    parts: Sequence[Part],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` (1, heads, N, D) over the rows of ``parts``, where ``key`` and ``value``
    (1, key heads, N, D) are written first: (1, N, heads, D)."""
    for changed in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(changed) is not None:
            raise UnsupportedModelError(f"{type(module).__name__} has a {changed} in its attention: not supported")
    layer: Any = module.layer_idx
    queries, keys, values = query[0], key[0].transpose(0, 1), value[0].transpose(0, 1)
    if len(parts) == 1:
        return parts[0].attend(layer, queries, keys, values, scaling)[None], None
    attended = [
        part.attend(layer, queries[:, part.tokens], keys[part.tokens], values[part.tokens], scaling) for part in parts
    ]
    return torch.cat(attended)[None], None


AttentionInterface.register(_NAME, _attend)
