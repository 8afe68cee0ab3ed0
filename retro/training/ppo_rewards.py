"""What a sampled reflection is worth to PPO: the actor's own retry, the learnt reward model, or a mix of both."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch

from retro.buffer.views import Context
from retro.config import ConfigError, PolicySection, RunConfig, SampledPolicySection, build
from retro.memory.bank import bank_of
from retro.models.rounds import all_of
from retro.reading import read_json
from retro.retrospective.reward_files import facts_file
from retro.rollout.attempts import Attempt, Key
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.ties import minus
from retro.training.rewards.model import ModelOptions
from retro.types import Episode, Reflection


@dataclass(frozen=True, slots=True)
class Response:
    """One reflection that the policy sampled."""

    place: int
    """Its context's place in the step's global order; a group shares one."""
    index: int
    """Its own place in the group."""
    ids: tuple[int, ...]
    """Its tokens, the end token included where it was written."""
    log_probs: tuple[float, ...]
    """Of the sampler, a value a token."""
    text: str
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Worth:
    """A response's score and what it was made of."""

    score: float
    """What PPO maximises, before the KL penalty."""
    gain: float | None = None
    """True ΔG: the retry's return minus the failed episode's."""
    retry_return: float | None = None
    retry_success: bool | None = None
    model_score: float | None = None
    """The reward model's raw score."""


@dataclass(frozen=True, slots=True)
class ScoreTransform:
    """How the reward model's score, which has no scale of its own (Bradley-Terry), becomes a reward.

    ``standardise`` uses the mean and deviation that the reward stage measured once on the buffer's reflections on train
    tasks. They are frozen: a running standardisation would pay less for the same reflection as the policy improves.
    """

    kind: Literal["sigmoid", "standardise"]
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, score: float) -> float:
        if self.kind == "sigmoid":
            return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
        return (score - self.mean) / self.std

    @classmethod
    def load(cls, kind: Literal["sigmoid", "standardise"], reward_folder: Path) -> ScoreTransform:
        """Raises ConfigError where the reward stage left no usable statistics."""
        if kind == "sigmoid":
            return cls(kind)
        path = facts_file(reward_folder)
        try:
            facts = read_json(path)
            mean, std = float(facts["score_mean"]), float(facts["score_std"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: no score_mean and score_std, which score: standardise reads ({error}); run the reward stage "
                "again, or set ppo.reward={kind: model, score: sigmoid}"
            ) from error
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ConfigError(
                f"{path}: score_std is {std}: the reward model tells no reflection from another; train it longer, or "
                "set ppo.reward={kind: model, score: sigmoid}"
            )
        return cls(kind, mean, std)


@dataclass(frozen=True, slots=True)
class Play:
    """A retry of ``context``'s episode, with one more reflection; ``place`` tells it from its siblings."""

    context: Context
    reflection: Reflection
    place: int


class Retries:
    """The frozen actor's retries: true returns, for the environment reward and for the guard.

    Raises:
        ConfigError: if one of ``environments``, those of the failed episodes, is not what the config plays.
    """

    def __init__(self, config: RunConfig, environments: Collection[str], device: torch.device) -> None:
        self._parts = PlayerParts(device, config.actor_ledger)
        taskset = self._parts.taskset(config.environment)
        strange = sorted(set(environments) - set(taskset.environments))
        if strange:
            raise ConfigError(
                f"ppo: the buffer has failed episodes of {', '.join(strange)}, which environment.name="
                f"{config.environment.name} does not play: play them in a mixture, or choose with buffer.environments"
            )
        spec = PlayerSpec.of(config, bank_of(config.memory, config))
        self._runner: Runner = build(config.runner, spec=spec, parts=self._parts)
        self._loop = asyncio.Runner()  # one event loop for all steps: a runner may hold connections that belong to it

    def close(self) -> None:
        """Give back what the runner and the environments hold (processes, connections)."""
        self._runner.close()
        self._loop.close()
        self._parts.close()

    def play(self, key: Key, plays: Sequence[Play]) -> list[Episode]:
        """Play all, concurrently, the episodes in order; ``key`` names the draws."""
        return self._loop.run(self._play(key, plays))

    async def _play(self, key: Key, plays: Sequence[Play]) -> list[Episode]:
        attempts = [
            Attempt.retry(key, play.context.episode, play.context.path, play.reflection, play.place) for play in plays
        ]
        return await all_of(self._runner.play(attempt) for attempt in attempts)


def score_kind(section: PolicySection) -> Literal["sigmoid", "standardise"]:
    """How the reward model's score becomes a reward, by the first term that asks it."""
    terms = [term for term in section.rewards if isinstance(term, ModelOptions)]
    return terms[0].score if terms else "sigmoid"


def combine(
    section: SampledPolicySection,
    response: Response,
    context: Context,
    episode: Episode | None,
    model_score: float | None,
    transform: ScoreTransform,
) -> Worth | None:
    """The score of one response; None where the actor's error left no return.

    ``environment``: ΔG. ``model``: the transformed score. A response that was cut at
    ``max_new_tokens`` before its end token keeps what it earned and loses ``missing_end_penalty``: the actor reads it
    as it stands, and it must still learn to end.
    """
    if episode is not None and episode.broken:
        return None
    gain = None if episode is None else minus(episode.return_, context.episode.return_)
    learnt = None if model_score is None else transform(model_score)
    values = {"environment": gain, "model": learnt}
    score = sum(term.weight * (values[term.kind] or 0.0) for term in section.rewards)
    if response.finish_reason == "length":
        score -= section.missing_end_penalty
    return Worth(
        score,
        gain,
        None if episode is None else episode.return_,
        None if episode is None else episode.success,
        model_score,
    )


@dataclass(frozen=True, slots=True)
class Scored:
    """The groups that have a score for every response, in the order of their places."""

    places: list[int]
    responses: list[Response]
    worths: list[Worth]
    dropped: int
    """Groups in which the actor or the environment failed for good."""


def whole_groups(responses: Sequence[Response], worths: Sequence[Worth | None]) -> Scored:
    """Drop every group that lost a retry, whole: what is left of it would be a biased part.

    Args:
        responses: whole groups, a group's members beside each other.
        worths: of each response; None where the actor failed.

    Raises:
        ValueError: if no group is left.
    """
    scored: list[tuple[Response, Worth]] = []
    places, dropped = [], 0
    for place, members in groupby(zip(responses, worths, strict=True), key=lambda pair: pair[0].place):
        group = list(members)
        whole = [(response, worth) for response, worth in group if worth is not None]
        if len(whole) < len(group):
            dropped += 1
            continue
        places.append(place)
        scored += whole
    if dropped and not places:
        raise ValueError(
            f"the actor (or the environment) failed in every one of {dropped} groups of retries: is its server still "
            "there?"
        )
    return Scored(places, [response for response, _ in scored], [worth for _, worth in scored], dropped)
