"""From the buffer's reflections to token ids: the same prompt and the same response as generation makes.

Nothing is truncated here: a prompt is shortened by the prompts' own rule (observations, the oldest first). A rated
reflection whose prompt does not fit even so is an error, never a lost example. A context that is only sampled from is
left out, and counted.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from retro.artifacts import digest_model
from retro.buffer.store import ReplayBuffer
from retro.buffer.views import Context, RatedReflection
from retro.config import ConfigError, RunConfig
from retro.models.limits import with_prompt_limit
from retro.models.loading import base_context, require_trainable
from retro.prompts import PromptLibrary, PromptTooLongError
from retro.retrospective.encoding import Encoder

logger = logging.getLogger(__name__)

MODEL_KEYS = (
    "model.base",
    "model.revision",
    "model.dtype",
    "model.quantization",
    "model.trust_remote_code",
    "model.rope_scaling",
    "model.chat_template_kwargs",
    "model.max_prompt_tokens",
    "model.max_new_tokens",
    "model.lora",
)
"""What supervised training reads of the retrospective model: all but how it samples. Prompts leave room for an answer
of ``max_new_tokens``."""

T = TypeVar("T", Context, RatedReflection)


def encoder_of_run(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Encoder:
    """Encodes as the run's retrospective model reads and writes."""
    section = with_prompt_limit(config.model, base_context(config.model))
    return Encoder(PromptLibrary.from_section(config.environment), tokenizer, section)


def without_too_long(items: Sequence[T], encoder: Encoder, what: str) -> list[T]:
    """The contexts (or the reflections on them) whose prompt fits; a warning counts the others, and names the first.

    Args:
        what: what the items are, for the warning.
    """
    kept: list[T] = []
    reasons: list[str] = []
    for item in items:
        context = item.context if isinstance(item, RatedReflection) else item
        try:
            encoder.prompt(context.episode)
        except PromptTooLongError as error:
            reasons.append(f"episode {context.episode.id}: {error}")
        else:
            kept.append(item)
    if reasons:
        logger.warning("%d of %d %s are left out: %s", len(reasons), len(items), what, reasons[0])
    return kept


def training_inputs(config: RunConfig) -> dict[str, str]:
    """Digests of what every training stage reads: the buffer, the base model, the prompts.

    Raises:
        ConfigError: if the model's dtype does not train, or the buffer lacks what the config asks for.
    """
    require_trainable(config.model)
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        episodes = buffer.digest(config.buffer.environments)
    return {
        "buffer": episodes,
        "base": digest_model(config.model.base, config.model.revision),
        "prompts": prompts_digest(config, trained_environments(config)),
    }


def trained_environments(config: RunConfig) -> list[str]:
    """The environments that training reads of the buffer.

    Raises:
        ConfigError: if the buffer has nothing of one that ``buffer.environments`` names.
    """
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        held = buffer.environments()
    absent = sorted(set(config.buffer.environments) - set(held))
    if absent:
        raise ConfigError(
            f"buffer.environments: {buffer} has no episode of {', '.join(absent)}; it has: {', '.join(held) or 'none'}"
        )
    return sorted(config.buffer.environments) or held


def prompts_digest(config: RunConfig, environments: Sequence[str]) -> str:
    """Names the prompts of ``environments``."""
    return hashlib.sha256(PromptLibrary.from_section(config.environment).digest(environments).encode()).hexdigest()
