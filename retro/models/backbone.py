"""The two halves of a causal LM, called apart: hidden states of every token, logits of the chosen ones alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

SHARED_ATTENTION = ("retro_shared_prefix", "retro_shared_rows")
"""Names of our own functions in transformers' ``AttentionInterface``: for training, and for sampling."""


_LOGIT_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Keys of a configuration by which a model multiplies its logits (1) or divides them (-1)."""
_LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Keys for c in c · tanh(logits / c)."""


class UnsupportedModelError(ValueError):
    """A base model that would compute something else than what is meant; the message names it and what differs."""


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside, with its adapters in place: a PEFT wrapper is taken off, nothing else changes."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def decoder_of(model: nn.Module) -> PreTrainedModel:
    """The part of a causal LM that turns tokens into hidden states.

    ``get_decoder`` of transformers answers with the output layer where a model calls that one ``decoder``, and with
    the whole causal LM where it finds nothing.
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
    """Logits (..., V) of hidden states (..., H), in float32 at least: sums over a vocabulary need it.

    Scaled and capped as the model's own are, if its configuration says that they are.
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
    """The longest sequence (tokens) that every layer attends to as a whole, or None where there is no limit."""
    config = plain_model(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and all(kind == "full_attention" for kind in kinds):
        return None
    return int(window) if window is not None and getattr(config, "use_sliding_window", True) else None


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """An attention mask: 0 where ``visible`` (bool, any shape), the least finite number of ``dtype`` elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


def in_its_dtype(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Adapters are kept in float32 and compute in the base's dtype: in float32 the input of each adapted layer would be
    copied and kept for the backward pass, half of what a layer keeps, and be multiplied without tensor cores."""
    half = model.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, model.dtype) if half else nullcontext()
