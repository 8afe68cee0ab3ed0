"""From the buffer's reflections to token ids: the same prompt and the same response as generation makes.

Nothing is truncated here: a prompt is shortened by the prompts' own rule (observations, the oldest first), and what
does not fit even so is an error, never a lost example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

import retro.prompts
from retro.agent.reflector import reflection_prompt, reflection_response
from retro.artifacts import digest_model, digest_path
from retro.buffer.store import ReplayBuffer
from retro.buffer.views import Context
from retro.config import ModelSection, RunConfig
from retro.memory import Memory
from retro.prompts import load_prompts
from retro.types import Reflection


class Encoder:
    """Encodes contexts and reflections for one base model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, section: ModelSection, memory: Memory) -> None:
        self._tokenizer = tokenizer
        self._section = section
        self._memory = memory

    def prompt(self, context: Context) -> list[int]:
        """What the retrospective model reads about a failed episode, in its environment's words.

        Raises:
            PromptTooLongError: if it exceeds ``model.max_prompt_tokens`` with every observation left out.
        """
        episode = context.episode
        prompts = load_prompts(episode.task.environment)
        memory = self._memory.recall(context.memory)
        return reflection_prompt(prompts, self._tokenizer, self._section, episode, memory)

    def response(self, reflection: Reflection) -> list[int]:
        """The reflection with its end token; without it where it was cut: to end there is nothing to learn."""
        return reflection_response(self._tokenizer, reflection)


def training_inputs(config: RunConfig) -> dict[str, str]:
    """Digests of what every training stage reads: the buffer, the base model, the prompts."""
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        episodes = buffer.digest(config.buffer.environments)
    return {
        "buffer": episodes,
        "base": digest_model(config.model.base, config.model.revision),
        "prompts": prompts_digest(config.buffer.environments),
    }


def prompts_digest(environments: Sequence[str] = ()) -> str:
    """Names the prompt templates of ``environments``; empty: of all that ship."""
    folder = Path(retro.prompts.__file__).parent
    names = sorted(environments) or sorted(path.parent.name for path in folder.glob("*/reflection.jinja"))
    parts = [f"{name} {digest_path(folder / name)}" for name in names if (folder / name).is_dir()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
