"""``model``: the learnt reward model's score of the reflection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import ValidationError

from retro.agent.records import RewardRecord
from retro.config import ConfigError, RewardTermSection
from retro.reading import UnreadableError, problems, read_json
from retro.retrospective.reward_files import facts_file
from retro.training.rewards.base import Reward

if TYPE_CHECKING:
    from retro.training.policy.groups import Group


class ModelOptions(RewardTermSection):
    """The learnt reward model's score."""

    kind: Literal["model"] = "model"
    score: Literal["sigmoid", "standardise"] = "standardise"
    """How a Bradley-Terry score, which has no scale, becomes a reward. ``standardise`` uses the mean and the deviation
    that the reward stage measured once, on the buffer's reflections on train tasks. They are frozen: a running
    standardisation would pay less for the same reflection as the policy improves."""


class ModelReward(Reward):
    """
    Args:
        mean, std: those of the reward model's scores, for ``standardise``.
    """

    Options = ModelOptions
    needs = frozenset({"reward_model"})

    def __init__(self, options: ModelOptions, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(options)
        self._mean, self._std = mean, std

    @classmethod
    def from_options(cls, options: ModelOptions, reward_folder: Path) -> Self:
        """
        Raises:
            ConfigError: if ``standardise`` finds no scale in ``reward_folder``.
        """
        if options.score == "sigmoid":
            return cls(options)
        try:
            scale = measured_scale(reward_folder)
        except ConfigError as error:
            raise ConfigError(f"{error}, or set ppo.reward={{kind: model, score: sigmoid}}") from None
        return cls(options, scale.mean, scale.std)

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        return [[self.transform(score) for score in group.model_scores] for group in groups]

    def transform(self, score: float) -> float:
        """The reward of a raw score."""
        if self.options.score == "sigmoid":
            return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
        return (score - self._mean) / self._std


def measured_scale(reward_folder: Path) -> RewardRecord:
    """The scale of a reward model's scores, as its stage measured it.

    Raises:
        ConfigError: if ``reward.json`` is missing or damaged, or says that all scores are equal.
    """
    path = facts_file(reward_folder)
    try:
        facts = read_json(path)
        if facts["score_std"] == 0:
            raise ConfigError(
                f"{path}: score_std is 0, so all reflections have one score: train longer; run the reward stage again"
            )
        return RewardRecord(mean=facts["score_mean"], std=facts["score_std"], loss=facts["loss"])
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems(error)}; run the reward stage again") from None
    except (OSError, UnreadableError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no score_mean, score_std and loss ({error}); run the reward stage again") from None
