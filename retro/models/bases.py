"""Which base models may share a prompt among its responses, and which compute each response by itself.

Sharing is exact only where attention is the one thing that looks at other tokens, and where it does so as our masks
say. Whether that holds is a property of an architecture that a short test cannot always see: a window or a sparse
selection shows only in long sequences. So the architectures are listed here, each of them tested on small random
models with sequences on both sides of every such border (``tests/unit/models/test_bases.py``, ``docs/bases.md``). All
others compute each response by itself, with the model's own forward pass and cache: slower, and as exact.
"""

from __future__ import annotations

import logging
from typing import Literal
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from retro.models.backbone import SHARED_ATTENTION, sliding_window

logger = logging.getLogger(__name__)

Use = Literal["training", "sampling"]
"""``training`` is every forward pass over given responses, those of the reward model included."""

_OTHER_CACHE = {
    "axk1",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "gpt_bigcode",
    "jetmoe",
    "minicpm3",
    "youtu",
}
"""Architectures whose attention keeps something other than a key and a value for each head that the configuration
names: our key-value memory does not fit them."""

SAMPLING = frozenset(
    {
        "afmoe",
        "apertus",
        "arcee",
        "beam",
        "bitnet",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "cwm",
        "diffllama",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "flex_olmo",
        "gemma",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_neox",
        "granite",
        "granitemoe",
        "granitemoeshared",
        "helium",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hy_v3",
        "hyperclovax",
        "jais2",
        "kolibri1",
        "laguna",
        "llama",
        "mellum",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nanochat",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "opt",
        "persimmon",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "solar_open",
        "starcoder2",
    }
)
"""``model_type`` of the architectures whose samples share a prompt's keys and values."""
TRAINING = SAMPLING | _OTHER_CACHE
"""``model_type`` of the architectures whose responses stand behind one prompt in a training pass."""

_forbidden: WeakKeyDictionary[nn.Module, dict[Use, str]] = WeakKeyDictionary()
_told: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def shares_prompts(model: PreTrainedModel, use: Use, longest: int) -> bool:
    """Whether responses can share their prompt; why they cannot is logged once for each model.

    Args:
        model: a plain transformers model (see :func:`retro.models.backbone.plain_model`).
        longest: tokens of the longest prompt with one of its responses.
    """
    reason = obstacle(model, use, longest)
    if reason is not None:
        tell_once(model, f"{type(model).__name__} {reason}: {use} does not share prompts, which is exact and slower")
    return reason is None


def obstacle(model: PreTrainedModel, use: Use, longest: int) -> str | None:
    """Why responses cannot share their prompt, as the end of a sentence about the model; None if they can."""
    config = model.config.get_text_config()
    window = sliding_window(model)
    listed = TRAINING if use == "training" else SAMPLING
    if config.model_type not in listed:
        return f"is of the architecture {config.model_type!r}, which is not listed as exact with shared prompts"
    if window is not None and longest > window:
        # a layer with a window would count a response's distance to the prompt over its siblings
        return f"attends to a sliding window of {window} tokens, and longer sequences came"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return "has layers other than attention over all tokens"
    if not getattr(model, "_supports_attention_backend", False):
        return "does not use transformers' AttentionInterface"
    if config._attn_implementation not in ("sdpa", *SHARED_ATTENTION):
        return f"was loaded with attn_implementation={config._attn_implementation!r} instead of 'sdpa'"
    return _forbidden.get(model, {}).get(use)


def forbid_sharing(model: PreTrainedModel, use: Use, reason: str) -> None:
    """Let ``model`` take the plain path from now on.

    Args:
        reason: the end of a sentence about the model.
    """
    _forbidden.setdefault(model, {})[use] = reason


def tell_once(model: nn.Module, message: str) -> None:
    """Log a message the first time that it comes for this model."""
    told = _told.setdefault(model, set())
    if message not in told:
        told.add(message)
        logger.info(message)
