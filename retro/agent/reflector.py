"""The retrospective model and the reward model on a shared base, as the loop asks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from retro.config import ModelSection
from retro.models.adapters import SharedBase
from retro.models.generation import Engine
from retro.models.limits import prompt_tokens, with_prompt_limit
from retro.models.packing import last_token_scores, pack, plan, tree_tokens
from retro.models.rounds import Rounds
from retro.models.text import decode_response, encode_prompt, encode_response
from retro.prompts import Prompts
from retro.types import Episode, Reflection, ReflectionRequest, Sampling, TokenLimit, Usage, derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from retro.models.heads import ScalarHead

_SCORED_TOKENS = 16384
"""Tokens of one scoring pass; one group may be longer."""


def reflection_text(
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    section: ModelSection,
    episode: Episode,
    memory: Sequence[str],
) -> str:
    """What a retrospective model is asked about ``episode``, before a chat template or a begin token.

    Args:
        prompts: The prompts of the episode's environment.
        tokenizer: The base's.
        section: Its ``max_prompt_tokens`` is kept to, by shortening; filled in by whoever knows the base.
        episode: The failed one.
        memory: What its actor's memory held, oldest first.

    Raises:
        PromptTooLongError: if it does not fit even shortened.
    """
    limit = TokenLimit(
        lambda text: len(encode_prompt(tokenizer, text, section.chat_template_kwargs)),
        prompt_tokens(section, context=None),
        "model.max_prompt_tokens",
    )
    of_environment = prompts.of(episode.task.environment)
    return of_environment.reflection(episode.trajectory, episode.return_, episode.success, memory, limit)


def reflection_prompt(
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    section: ModelSection,
    episode: Episode,
    memory: Sequence[str],
) -> list[int]:
    """:func:`reflection_text` in tokens, as a retrospective model answers and a reward model judges them."""
    text = reflection_text(prompts, tokenizer, section, episode, memory)
    return encode_prompt(tokenizer, text, section.chat_template_kwargs)


def reflection_response(tokenizer: PreTrainedTokenizerBase, reflection: Reflection) -> list[int]:
    """The reflection's tokens, with the end token unless it was cut before it."""
    ids = encode_response(tokenizer, reflection.text)
    return ids[:-1] if reflection.finish_reason == "length" and len(ids) > 1 else ids


@dataclass(frozen=True, slots=True)
class _Asked:
    prompt: list[int]
    count: int
    seed: int


class LocalReflector:
    """Writes reflections with one role of a shared base; requests under way at once become one batch.

    Args:
        base: The shared base model.
        role: The adapter that writes; None is the base itself.
        prompts: The environments' prompts.
        section: How it samples: temperature, top_p, lengths.
        source: What the reflections say of where they come from (``base``, ``sft``, ``ppo`` …).
    """

    def __init__(
        self, base: SharedBase, role: str | None, prompts: Prompts, section: ModelSection, source: str
    ) -> None:
        self._base = base
        self._role = role
        self._prompts = prompts
        self._section = with_prompt_limit(section, base.context)
        self._source = source
        self._engine = Engine(base.model, base.tokenizer)
        self._rounds: Rounds[_Asked, list[Reflection]] = Rounds(self._write)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """``request.count`` reflections behind one prefill of the prompt.

        Raises:
            PromptTooLongError: if the episode does not fit: this request's alone, not that of others in its batch.
        """
        prompt = reflection_prompt(self._prompts, self._base.tokenizer, self._section, request.episode, request.memory)
        return await self._rounds.submit(_Asked(prompt, request.count, request.seed))

    def _write(self, requests: list[_Asked]) -> list[list[Reflection]]:
        """One batch for all requests of a count (one batch alone, as a rule: a run asks for groups of one size)."""
        answers: dict[int, list[Reflection]] = {}
        places = sorted(range(len(requests)), key=lambda place: requests[place].count)
        with self._base.role(self._role):
            for count, same in groupby(places, key=lambda place: requests[place].count):
                members = list(same)
                written = self._sample([requests[place] for place in members], count)
                answers.update(zip(members, written, strict=True))
        return [answers[place] for place in range(len(requests))]

    def _sample(self, requests: list[_Asked], count: int) -> list[list[Reflection]]:
        section, tokenizer = self._section, self._base.tokenizer
        sampling = Sampling(temperature=section.temperature, top_p=section.top_p, max_tokens=section.max_new_tokens)
        seeds = [[derive_seed(request.seed, index) for index in range(count)] for request in requests]
        drawn = self._engine.sample([request.prompt for request in requests], count, sampling, seeds)
        return [
            [
                Reflection(
                    text=decode_response(tokenizer, generated.ids),
                    source=self._source,
                    index=index,
                    finish_reason=generated.finish_reason,
                    usage=Usage(len(request.prompt), len(generated.ids)),
                )
                for index, generated in enumerate(group)
            ]
            for request, group in zip(requests, drawn, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Judged:
    prompt: list[int]
    responses: list[list[int]]


class LocalScorer:
    """Scores reflections with the reward model: its adapter on the shared base, and its scalar head.

    The scores are raw: of no scale (Bradley-Terry) or logits (cross-entropy). Requests under way at once are one batch.
    """

    def __init__(self, base: SharedBase, role: str, head: ScalarHead, prompts: Prompts, section: ModelSection) -> None:
        self._base = base
        self._role = role
        self._head = head
        self._prompts = prompts
        self._section = with_prompt_limit(section, base.context)
        self._rounds: Rounds[_Judged, list[float]] = Rounds(self._judge)

    async def __call__(self, request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
        """A score a reflection, in order."""
        tokenizer = self._base.tokenizer
        prompt = reflection_prompt(self._prompts, tokenizer, self._section, request.episode, request.memory)
        responses = [reflection_response(tokenizer, reflection) for reflection in reflections]
        return await self._rounds.submit(_Judged(prompt, responses))

    @torch.inference_mode()
    def _judge(self, requests: list[_Judged]) -> list[list[float]]:
        scores: dict[int, list[float]] = {}
        with self._base.role(self._role):
            tokens = tree_tokens(
                self._base.model, [item.prompt for item in requests], [item.responses for item in requests]
            )
            for chunk in plan(tokens, _SCORED_TOKENS):
                members = [requests[place] for place in chunk]
                packed = pack([request.prompt for request in members], [request.responses for request in members])
                flat = last_token_scores(self._base.model, packed, self._head)  # (R,)
                groups = flat.float().split([len(request.responses) for request in members])
                scores.update(zip(chunk, (group.tolist() for group in groups), strict=True))
        return [scores[place] for place in range(len(requests))]
