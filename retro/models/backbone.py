"""The two halves of a causal LM, called separately: hidden states of all tokens, and logits of chosen tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SHARED_ATTENTION = ("retro_shared_prefix", "retro_shared_rows")
"""The names of our functions in transformers' ``AttentionInterface``, for training and for sampling."""


_LOGIT_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Configuration keys by which a model multiplies its logits (1) or divides them (-1)."""
_LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Configuration keys for c in c · tanh(logits / c)."""


class UnsupportedModelError(ValueError):
    """A base model that would compute something else than intended. The message names it and what differs."""


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model without a PEFT wrapper; its adapters stay in place."""
    wrapped = getattr(model, "get_base_model", None)  # PEFT takes seconds to import, and a model alone needs none of it
    return cast(PreTrainedModel, wrapped() if wrapped else model)


def decoder_of(model: nn.Module) -> PreTrainedModel:
    """The part of a causal LM that turns tokens into hidden states.

    transformers' ``get_decoder`` returns the output layer of a model that calls it ``decoder``, and the whole causal LM
    if it finds nothing.
    """
    plain = plain_model(model)
    found = plain.get_decoder()
    if isinstance(found, PreTrainedModel) and found is not plain:
        return found
    return cast(PreTrainedModel, plain.model)


def hidden_states(model: nn.Module, **inputs: Any) -> Tensor:
    """The last layer's normalised hidden states (B, T, H), adapters included."""
    plain = plain_model(model)
    with in_its_dtype(plain):
        hidden: Tensor = decoder_of(plain)(**inputs).last_hidden_state
    return hidden


def logits_of(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (..., V) of hidden states (..., H), scaled and capped as the model's configuration says.

    They have at least 32 bits, which sums over a vocabulary need.
    """
    plain = plain_model(model)
    with in_its_dtype(plain):
        logits: Tensor = cast(nn.Module, plain.get_output_embeddings())(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    config = plain.config.get_text_config()
    scale = 1.0
    for name, power in _LOGIT_SCALES.items():
        scale *= float(getattr(config, name, None) or 1) ** power
    if scale != 1:
        logits = logits * scale
    cap = next((value for name in _LOGIT_CAPS if (value := getattr(config, name, None)) is not None), None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def sliding_window(model: nn.Module) -> int | None:
    """The longest sequence (tokens) that all layers attend to as a whole; None if there is no limit."""
    config = plain_model(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and all(kind == "full_attention" for kind in kinds):
        return None
    return int(window) if window is not None and getattr(config, "use_sliding_window", True) else None


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """An attention mask: 0 where ``visible`` (bool, any shape), the lowest finite number of ``dtype`` elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


def in_its_dtype(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Let adapters, which are kept in float32, compute in the base's dtype.

    In float32, a copy of each adapted layer's input would be kept for the backward pass (half of what a layer keeps),
    and tensor cores would not be used.
    """
    half = model.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, model.dtype) if half else nullcontext()
