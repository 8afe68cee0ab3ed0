"""Encodes a failed episode as the retrospective model's prompt, and a reflection as its response."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from retro.config import ModelSection
from retro.models.limits import prompt_tokens
from retro.models.text import encode_prompt, encode_response
from retro.prompts import Prompts
from retro.prompts.revising import RevisingPrompts
from retro.types import Episode, Reflection, TokenLimit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """Encodes episodes and reflections for a retrospective model or a reward model.

    Args:
        prompts: The environments' prompts.
        tokenizer: The base's tokenizer.
        section: Its ``max_prompt_tokens`` limits the prompts; :func:`retro.models.limits.with_prompt_limit` sets it
            from the base's context.
    """

    def __init__(self, prompts: Prompts, tokenizer: PreTrainedTokenizerBase, section: ModelSection) -> None:
        self.tokenizer = tokenizer
        self.section = section
        self._prompts = prompts
        self._limit = TokenLimit(
            lambda text: len(self.encode(text)), prompt_tokens(section, context=None), "model.max_prompt_tokens"
        )

    def text(self, episode: Episode, around: Callable[[str], str] = str) -> str:
        """The prompt about ``episode`` and what its actor recalled, without a chat template or a begin token.

        A prompt that is too long is shortened: observations are left out, the oldest first.

        Args:
            around: Puts the prompt into a longer text, to which the limit applies.

        Raises:
            PromptTooLongError: if it exceeds ``model.max_prompt_tokens`` even shortened.
        """
        prompts = self._prompts.of(episode.task.environment)
        recalled = episode.recalled.entries
        return prompts.reflection(episode.trajectory, episode.return_, episode.success, recalled, self._limit, around)

    def revising(self, episode: Episode) -> RevisingPrompts:
        """The prompts by which a reflection on ``episode`` is rewritten."""
        return self._prompts.of(episode.task.environment).revising

    def prompt(self, episode: Episode) -> list[int]:
        """:meth:`text` in tokens."""
        return self.encode(self.text(episode))

    def response(self, reflection: Reflection) -> list[int]:
        """The reflection's tokens with the end token, which a reflection that was cut off does not have."""
        ids = encode_response(self.tokenizer, reflection.text)
        return ids[:-1] if reflection.finish_reason == "length" and len(ids) > 1 else ids

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt's text, with its chat template or its begin token."""
        return encode_prompt(self.tokenizer, text, self.section.chat_template_kwargs)
