"""``length``: a shaping term that takes reward from a reflection for each token beyond a soft limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from retro.config import PositiveInt, RewardTermSection
from retro.training.rewards.base import Reward

if TYPE_CHECKING:
    from retro.training.policy.groups import Group


class LengthOptions(RewardTermSection):
    """Tokens beyond a soft limit: 0 up to the limit, then falling by 1 with each further ``soft_limit`` tokens."""

    kind: Literal["length"] = "length"
    soft_limit: PositiveInt = 64
    """Tokens of a reflection that cost nothing, its end token included."""


class LengthReward(Reward):
    """``min(0, 1 − tokens / soft_limit)``, our own form: TGRL (arXiv 2510.11184) shapes by the format alone."""

    Options = LengthOptions

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        limit = self.options.soft_limit
        return [[min(0.0, 1 - len(response.ids) / limit) for response in group.responses] for group in groups]
