"""``environment``: the actor's own retry with the reflection; its return minus the failed episode's (true ΔG)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from retro.config import RewardTermSection
from retro.ratings import delta_return
from retro.training.rewards.base import Reward

if TYPE_CHECKING:
    from retro.training.policy.groups import Group


class EnvironmentOptions(RewardTermSection):
    """The actor's own retry: its return minus that of the failed episode."""

    kind: Literal["environment"] = "environment"


class EnvironmentReward(Reward):
    Options = EnvironmentOptions
    needs = frozenset({"retries"})

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        return [delta_return(group.retry_returns, group.failed_return) for group in groups]
