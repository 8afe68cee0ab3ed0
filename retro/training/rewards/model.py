"""``model``: the learnt reward model's score of the reflection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from retro.config import ConfigError, RewardTermSection
from retro.reading import read_json
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
        mean, std: of the reward model's scores; for ``standardise``.
    """

    Options = ModelOptions
    needs = frozenset({"reward_model"})

    def __init__(self, options: ModelOptions, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(options)
        self._mean, self._std = mean, std

    @classmethod
    def from_options(cls, options: ModelOptions, reward_folder: Path) -> Self:
        """Raises ConfigError where the reward stage left no usable statistics."""
        if options.score == "sigmoid":
            return cls(options)
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
        return cls(options, mean, std)

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        return [[self.transform(score) for score in group.model_scores] for group in groups]

    def transform(self, score: float) -> float:
        """The reward of a raw score."""
        if self.options.score == "sigmoid":
            return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
        return (score - self._mean) / self._std
