"""How long a retrospective model's prompts may be: its base's context less the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retro.config import ConfigError, ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_PROMPT_TOKENS = 2048
"""The longest prompt if ``model.max_prompt_tokens`` is not set and the base takes more."""
READING_KEYS = (
    "model.dtype",
    "model.quantization",
    "model.trust_remote_code",
    "model.rope_scaling",
    "model.chat_template_kwargs",
    "model.max_prompt_tokens",
    "model.max_new_tokens",
)
"""The config keys that decide how a base reads a prompt, which leaves room for an answer of ``max_new_tokens``."""
SAMPLING_KEYS = ("model.temperature", "model.top_p", "model.generator")
"""The config keys that decide how reflections are sampled."""


def context_tokens(config: PreTrainedConfig) -> int | None:
    """The longest sequence (tokens) that a model of this configuration takes; None where it names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or None


def prompt_tokens(section: ModelSection, context: int | None) -> int:
    """The longest prompt (tokens): ``max_prompt_tokens``, by default the base's context less ``max_new_tokens``, but at
    most ``DEFAULT_PROMPT_TOKENS``.

    Args:
        context: the longest sequence that the base takes; None for no limit, or an unknown one.

    Raises:
        ConfigError: if prompt and answer together exceed the context.
    """
    if context is None:
        return section.max_prompt_tokens or DEFAULT_PROMPT_TOKENS
    room = context - section.max_new_tokens
    if room <= 0:
        raise ConfigError(
            f"model.max_new_tokens={section.max_new_tokens} leaves no room for a prompt in the {context:,} tokens "
            f"that the base {section.base!r} holds: lower it"
        )
    if section.max_prompt_tokens is None:
        return min(room, DEFAULT_PROMPT_TOKENS)
    if section.max_prompt_tokens > room:
        raise ConfigError(
            f"model.max_prompt_tokens={section.max_prompt_tokens} and model.max_new_tokens={section.max_new_tokens} "
            f"together exceed the {context:,} tokens that the base {section.base!r} holds: set "
            f"model.max_prompt_tokens={room} or less, or leave it out"
        )
    return section.max_prompt_tokens


def with_prompt_limit(section: ModelSection, context: int | None) -> ModelSection:
    """The section with its limit on prompts filled in; see :func:`prompt_tokens`."""
    return section.model_copy(update={"max_prompt_tokens": prompt_tokens(section, context)})
