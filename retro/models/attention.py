"""Attention among trees in one row: a prompt sees what stands before it, a response its prompt and itself.

The plain way computes it on slices by SDPA: each prompt by itself, causally and without a mask, then its responses
against the tree's keys with a mask of their own rows. So no tree costs what another one does, and no mask of T × T is
ever made. On CUDA one FlexAttention kernel does all of it and skips the blocks that nobody sees.

Both are one function of transformers' ``AttentionInterface``, chosen by name once for a model and then left in place:
a layer that gradient checkpointing computes again does so in the backward pass, after any context manager around the
forward pass. What it does goes by its arguments alone; without trees it is ``sdpa``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from retro.models.backbone import SHARED_ATTENTION, additive_mask, decoder_of
from retro.models.bases import tell_once

_NAME = SHARED_ATTENTION[0]
_BLOCK = 128
"""Tokens of a FlexAttention block, which is skipped or computed as a whole."""
_QUERIES = 1024
"""Rows of the full mask that are looked at together while a block mask is made."""
_ALIGNMENT = 16
"""A tree's mask begins at a multiple of it: CUDA's memory-efficient kernel refuses a mask that begins elsewhere."""


def uses_flex_attention(model: PreTrainedModel) -> bool:
    """Whether the model's device has FlexAttention for it; why a CUDA device has not is logged once a model."""
    if model.device.type != "cuda":
        return False
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    reason = None
    if find_spec("triton") is None:
        reason = "Triton is not installed"
    elif torch.cuda.get_device_capability(model.device) < (7, 0):
        reason = "Triton needs a device of compute capability 7.0"
    elif not getattr(model, "_supports_flex_attn", False):
        reason = "transformers has none for this model"
    elif size < 16:
        reason = f"it needs heads of 16 numbers or more, and these have {size}"
    elif model.training and getattr(config, "attention_dropout", None):
        reason = "it has no dropout"
    if reason:
        tell_once(model, f"{type(model).__name__} runs without FlexAttention: {reason}. SDPA computes the same, slower")
    return reason is None


def use_shared_prefixes(model: PreTrainedModel) -> None:
    """Let the model's attention take :func:`slice_inputs` and :func:`block_mask`; all else stays ``sdpa``."""
    config = decoder_of(model).config
    if config._attn_implementation != _NAME:
        config._attn_implementation = _NAME


def slice_inputs(shapes: Sequence[tuple[int, int]], segments: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """What the model's forward pass is told beside the tokens on the plain way.

    Args:
        shapes: of each tree: tokens of the prompt, tokens in all.
        segments: (T,) see :class:`retro.models.packing.PackedBatch`.
    """
    masks, end = [], 0
    for prompt, total in shapes:
        start, end = end, end + total
        keys = torch.arange(start, end, device=segments.device)
        visible = _sees(segments, keys[prompt:, None], keys)  # (total - prompt, total)
        masks.append(pad(additive_mask(visible, dtype).flatten(), (0, -visible.numel() % _ALIGNMENT)))
    return {"attention_mask": torch.cat(masks)[None, None, None], "trees": tuple(shapes)}  # (1, 1, 1, Σ)


def block_mask(trees: Tensor, segments: Tensor) -> BlockMask:
    """The mask of FlexAttention for a row of T tokens, T a multiple of 128.

    Not by ``create_block_mask``, which makes all T × T entries at once, several times over.

    Args:
        trees: (T,) the tree of each token, -1: padding.
        segments: (T,) 0: prompt, k: its k-th response, -1: padding.
    """
    length = len(trees)
    keys = torch.arange(length, device=trees.device)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (trees[query] == trees[key]) & _sees(segments, query, key)

    some, whole = [], []
    for queries in keys.split(_QUERIES):
        visible = mask_mod(queries, queries, queries[:, None], keys)  # (q, T)
        blocks = visible.view(-1, _BLOCK, length // _BLOCK, _BLOCK)
        some.append(blocks.any(3).any(1))
        whole.append(blocks.all(3).all(1))
    full = torch.cat(whole)  # (T / 128, T / 128)
    partial = torch.cat(some) & ~full
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(full), BLOCK_SIZE=_BLOCK, mask_mod=mask_mod, seq_lengths=(length, length)
    )


def padded_length(tokens: int) -> int:
    """The length of a FlexAttention row: at most 32 lengths an octave, lest each batch be compiled for anew."""
    step = max(_BLOCK, (1 << (tokens - 1).bit_length()) // 32)
    return -(-tokens // step) * step


def _sees(segments: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether a query (its place) sees a key of the same tree; bool, broadcast."""
    return (key <= query) & ((segments[key] == 0) | (segments[key] == segments[query]))


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of blocks: how many are set, and which, these first; (1, 1, rows) and (1, 1, rows, columns)."""
    order = torch.argsort(blocks.to(torch.uint8), dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    trees: Sequence[tuple[int, int]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of ``query`` (1, heads, T, D): (1, T, heads, D)."""
    if isinstance(attention_mask, BlockMask):
        result: tuple[Tensor, Tensor | None] = flex_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return result
    if trees is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    assert attention_mask is not None
    # split, not slices: the gradient of a slice is as long as the whole row
    queries = query.split([part for prompt, total in trees for part in (prompt, total - prompt)], dim=2)
    totals = [total for _, total in trees]
    sizes = [(total - prompt) * total for prompt, total in trees]
    masks = attention_mask.flatten().split([size + -size % _ALIGNMENT for size in sizes])
    found = []
    for number, (keys, values) in enumerate(zip(key.split(totals, dim=2), value.split(totals, dim=2), strict=True)):
        prompt, total = trees[number]
        before = (keys[:, :, :prompt], values[:, :, :prompt])
        mask = masks[number][: sizes[number]].view(1, 1, total - prompt, total)
        found.append(sdpa_attention_forward(module, queries[2 * number], *before, None, **kwargs)[0])
        found.append(sdpa_attention_forward(module, queries[2 * number + 1], keys, values, mask, **kwargs)[0])
    return torch.cat(found, dim=1), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
