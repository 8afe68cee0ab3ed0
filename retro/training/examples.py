"""What all training stages read: contexts and reflections whose prompts fit, the encoder, the digests of inputs.

Prompts are never truncated here. The prompts' own rule shortens them (the oldest observations first); what does not fit
even so is left out, with a warning that counts it.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from retro.artifacts import digest_model
from retro.buffer.store import ReplayBuffer
from retro.buffer.views import Context, RatedReflection, rated_reflections, sft_examples
from retro.config import ConfigError, RunConfig
from retro.models.limits import READING_KEYS, with_prompt_limit
from retro.models.loading import base_context, require_trainable
from retro.models.sharding import launched_pieces
from retro.prompts import PromptLibrary, PromptTooLongError
from retro.retrospective.encoding import Encoder
from retro.stage import NothingToLearnError
from retro.ties import exceeds
from retro.types import Split

logger = logging.getLogger(__name__)

MODEL_KEYS = ("model.base", "model.revision", *READING_KEYS, "model.lora")
"""What supervised training reads of the section ``model``: everything except how it samples."""

T = TypeVar("T", Context, RatedReflection)


def encoder_of_run(tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Encoder:
    """The encoder of what the run's retrospective model reads and writes."""
    section = with_prompt_limit(config.model, base_context(config.model))
    return Encoder(PromptLibrary.from_section(config.environment), tokenizer, section)


def without_too_long(items: Iterable[T], encoder: Encoder, what: str) -> Iterator[T]:
    """The contexts (or the reflections on them) whose prompt fits, one at a time; after the last one, a warning counts
    the others and names the first.

    Args:
        what: what the items are, for the warning.
    """
    number = left_out = 0
    first = reason = ""
    latest: Context | None = None
    for number, item in enumerate(items, 1):  # noqa: B007
        context = item.context if isinstance(item, RatedReflection) else item
        if context is not latest:  # the reflections on a context come one after another
            latest, reason = context, _too_long(context, encoder)
        if reason:
            left_out, first = left_out + 1, first or reason
        else:
            yield item
    if left_out:
        logger.warning("%d of %d %s are left out: %s", left_out, number, what, first)


def _too_long(context: Context, encoder: Encoder) -> str:
    """Why the prompt of a context does not fit; empty if it does."""
    try:
        encoder.prompt(context.episode)
    except PromptTooLongError as error:
        return f"episode {context.episode.id}: {error}"
    return ""


def imitated(config: RunConfig, encoder: Encoder) -> Iterator[RatedReflection]:
    """The reflections on train tasks that the stage ``sft`` imitates, one at a time.

    Raises:
        NothingToLearnError: after the last one, if none is rated above the threshold, or the prompt of none fits.
    """
    section, read = config.sft, ((Split.TRAIN,), config.buffer.environments)
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        fitting = 0
        above = sft_examples(buffer, section.rating, section.threshold, *read)
        for item in without_too_long(above, encoder, "reflections on train tasks"):
            fitting += 1
            yield item
        if fitting:
            return
        ratings = [item.rating for item in rated_reflections(buffer, section.rating, *read)]
        best = max(ratings, default=-math.inf)
        if exceeds(best, section.threshold):
            raise NothingToLearnError("sft: no prompt of a reflection fits model.max_prompt_tokens: raise it")
        raise NothingToLearnError(
            f"no reflection on a training task is rated above sft.threshold = {section.threshold} by "
            f"{section.rating} (of {len(ratings)} in {buffer}, "
            f"{f'the best is {best:.3f}' if ratings else 'there is none to rate'}): collect more tasks or larger "
            "groups, or lower sft.threshold"
        )


def training_inputs(config: RunConfig, stage: str, own_loop: bool = True) -> dict[str, str]:
    """Digests of what every training stage reads: the buffer, the base model, the prompts.

    Args:
        own_loop: whether the stage trains in a loop of ours (:func:`launched_pieces`).

    Raises:
        ConfigError: if the stage cannot run under this launch, the model's dtype does not train, or the buffer lacks
            what the config asks for.
    """
    launched_pieces(stage, config.model, own_loop)
    require_trainable(config.model)
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        episodes = buffer.digest(config.buffer.environments)
    return {
        "buffer": episodes,
        "base": digest_model(config.model.base, config.model.revision),
        "prompts": prompts_digest(config, trained_environments(config)),
    }


def trained_environments(config: RunConfig) -> list[str]:
    """The environments whose episodes training reads.

    Raises:
        ConfigError: if the buffer has no episode of an environment in ``buffer.environments``.
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
    """The digest of the prompts of ``environments``."""
    return hashlib.sha256(PromptLibrary.from_section(config.environment).digest(environments).encode()).hexdigest()
