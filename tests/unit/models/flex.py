"""FlexAttention without its compiler, which has no backward pass on a CPU."""

from __future__ import annotations

import pytest
from torch import Tensor
from torch._higher_order_ops.flex_attention import flex_attention as unfused
from transformers.integrations import flex_attention as transformers_flex

from retro.models import packing


def unfused_flex_attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: object) -> Tensor:
    """What FlexAttention computes, by its own reference."""
    mask, scale, score_mod = kwargs["block_mask"], kwargs["scale"], kwargs["score_mod"]
    if kwargs["enable_gqa"]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    options = {"BACKEND": "AUTO", "OUTPUT_LOGSUMEXP": True, "OUTPUT_MAX": False}
    result: Tensor = unfused(query, key, value, score_mod, mask.as_tuple(), scale, options)[0]
    return result


def use_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packed passes take the path of a CUDA device."""
    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", unfused_flex_attention)
    monkeypatch.setattr(packing, "uses_flex_attention", lambda model: True)
