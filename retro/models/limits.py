"""How long a retrospective model's prompts may be: what its base holds beside an answer."""

from __future__ import annotations

from transformers import PreTrainedConfig

from retro.config import ConfigError, ModelSection

DEFAULT_PROMPT_TOKENS = 2048
"""The longest prompt where ``model.max_prompt_tokens`` gives none and the base holds more."""


def context_tokens(config: PreTrainedConfig) -> int | None:
    """The longest sequence (tokens) that a model of this configuration takes; None where it names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or None


def prompt_tokens(section: ModelSection, context: int | None) -> int:
    """The longest prompt (tokens): ``max_prompt_tokens``, by default what the base holds beside an answer of
    ``max_new_tokens``, at most ``DEFAULT_PROMPT_TOKENS``.

    Args:
        context: what the base holds; None: without a limit, or unknown here.

    Raises:
        ConfigError: if prompt and answer together exceed what the base holds.
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
    """The section with its limit of prompts filled in (:func:`prompt_tokens`).

    Raises:
        ConfigError: if prompt and answer together exceed what the base holds.
    """
    return section.model_copy(update={"max_prompt_tokens": prompt_tokens(section, context)})
