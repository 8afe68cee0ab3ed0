"""``over_control``: the return of the actor's retry minus the mean return of retries without a reflection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from retro.config import PositiveInt, RewardTermSection
from retro.ratings import over_control
from retro.training.rewards.base import Reward

if TYPE_CHECKING:
    from retro.training.policy.groups import Group


class OverControlOptions(RewardTermSection):
    """What a reflection gives beyond trying again: the retry's return minus the mean of control retries."""

    kind: Literal["over_control"] = "over_control"
    controls: PositiveInt = 1
    """Retries without a reflection for each failed episode. None are played for an actor at temperature 0: each would
    replay the failed episode."""


class OverControlReward(Reward):
    Options = OverControlOptions
    needs = frozenset({"retries", "controls"})

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        return [over_control(group.retry_returns, group.control_returns, group.failed_return) for group in groups]
