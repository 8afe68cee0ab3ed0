"""Which base models may share a prompt among its responses, and which compute each response by itself.

Sharing is exact only if nothing but attention looks at other tokens, and only as our masks allow. A short test cannot
always see this property of an architecture: a window or a sparse selection shows only in long sequences. So the
architectures are listed here; each is tested on small random models with sequences on both sides of every such limit
(``tests/unit/models/test_bases.py``, ``docs/bases.md``). All others compute each response by itself, with the model's
own forward pass and cache, which is exact and slower.
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
"""``training`` is every forward pass over given responses, including those of the reward model."""

_OTHER_CACHE_NAMES = "axk1 deepseek_v2 deepseek_v3 diffllama glm4_moe_lite gpt_bigcode jetmoe minicpm3 youtu"
_OTHER_CACHE = frozenset(_OTHER_CACHE_NAMES.split())
"""Architectures whose attention keeps something else than a key and a value for each head, so that our key-value cache
does not fit them."""

_SAMPLING_NAMES = """
afmoe apertus arcee beam bitnet cohere cohere2 cohere2_moe cwm dots1 ernie4_5 ernie4_5_moe exaone4
exaone_moe flex_olmo gemma gemma3_text glm glm4 glm4_moe gpt2 gpt_neox granite granitemoe granitemoeshared helium
hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax jais2 kolibri1 laguna llama mellum minimax_m2 ministral ministral3
mistral mixtral nanochat olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss
smollm3 solar_open starcoder2
"""
SAMPLING = frozenset(_SAMPLING_NAMES.split())
"""``model_type`` of the architectures whose samples share a prompt's keys and values."""
TRAINING = SAMPLING | _OTHER_CACHE
"""``model_type`` of the architectures whose responses stand behind one prompt in a training pass."""

_forbidden: WeakKeyDictionary[nn.Module, dict[Use, str]] = WeakKeyDictionary()
_logged: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def shares_prompts(model: PreTrainedModel, use: Use, longest: int) -> bool:
    """Whether responses can share their prompt. If they cannot, the reason is logged once for each model.

    Args:
        model: a plain transformers model (:func:`retro.models.backbone.plain_model`).
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
        return f"attends to a sliding window of {window} tokens, and there are longer sequences"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return "has layers other than attention over all tokens"
    if not getattr(model, "_supports_attention_backend", False):
        return "does not use transformers' AttentionInterface"
    if config._attn_implementation not in ("sdpa", *SHARED_ATTENTION):
        return f"was loaded with attn_implementation={config._attn_implementation!r} instead of 'sdpa'"
    return _forbidden.get(model, {}).get(use)


def forbid_sharing(model: PreTrainedModel, use: Use, reason: str) -> None:
    """Let ``model`` compute each response by itself from now on; ``reason`` is the end of a sentence about it."""
    _forbidden.setdefault(model, {})[use] = reason


def tell_once(model: nn.Module, message: str) -> None:
    """Log a message once for each model."""
    logged = _logged.setdefault(model, set())
    if message not in logged:
        logged.add(message)
        logger.info(message)
