"""``model``: the learnt reward model's score of the reflection."""

from __future__ import annotations

from typing import ClassVar, Literal

from retro.config import RewardTermSection


class ModelOptions(RewardTermSection):
    """The learnt reward model's score."""

    kind: Literal["model"] = "model"
    score: Literal["sigmoid", "standardise"] = "standardise"
    """How a Bradley-Terry score, which has no scale, becomes a reward."""


class ModelReward:
    Options = ModelOptions
    needs: ClassVar[frozenset[str]] = frozenset({"reward_model"})
