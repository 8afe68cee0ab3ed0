"""The two halves of a causal LM, called apart: hidden states of every token, logits of the chosen ones alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast
from weakref import WeakSet

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

_checked: WeakSet[nn.Module] = WeakSet()


class UnsupportedModelError(ValueError):
    """A model whose logits are not its output layer applied to its last hidden state."""


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside, with its adapters in place: a PEFT wrapper is taken off, nothing else changes."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def hidden_states(model: nn.Module, **inputs: Any) -> Tensor:
    """The last layer's normalised hidden states (B, T, H), adapters included."""
    plain = plain_model(model)
    with _in_its_dtype(plain):
        hidden: Tensor = cast(nn.Module, plain.get_decoder())(**inputs).last_hidden_state
    return hidden


def logits_of(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (..., V) of hidden states (..., H), in float32 at least: sums over a vocabulary need it."""
    plain = plain_model(model)
    with _in_its_dtype(plain):
        logits: Tensor = cast(nn.Module, plain.get_output_embeddings())(hidden)
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def require_plain_head(model: nn.Module) -> None:
    """Check once that :func:`logits_of` is what the model itself computes (some scale or cap their logits).

    Raises:
        UnsupportedModelError: if it is not.
    """
    plain = plain_model(model)
    if plain in _checked:
        return
    ids = torch.zeros(1, 2, dtype=torch.long, device=plain.device)
    with _in_its_dtype(plain):
        own = plain(input_ids=ids, use_cache=False).logits
    split = logits_of(plain, hidden_states(plain, input_ids=ids, use_cache=False))
    if not torch.allclose(own.to(split.dtype), split, rtol=1e-2, atol=1e-2):
        raise UnsupportedModelError(
            f"{type(plain).__name__} ({plain.config.name_or_path!r}) changes its logits after the output layer "
            "(a scale or a cap), which is not supported: choose a base of the Llama, Mistral or Qwen2 kind"
        )
    _checked.add(plain)


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


def _in_its_dtype(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Adapters are kept in float32 and compute in the base's dtype: in float32 the input of each adapted layer would be
    copied and kept for the backward pass, half of what a layer keeps, and be multiplied without tensor cores."""
    half = model.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, model.dtype) if half else nullcontext()
