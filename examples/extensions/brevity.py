"""A reward term of one's own: what a reflection loses by being longer than it should be.

    ppo:
      reward:
        - environment
        - {kind: "examples.extensions.brevity:Brevity", weight: 0.1, options: {words: 40}}

The reward of a response is the weighted sum of its terms. A term says in `needs` what it has to know about a group of
responses, and the stage gathers that once for all terms: `retries` are the actor's retries with each response,
`controls` its retries without one, `reward_model` the learnt scores. This term reads the texts alone and needs nothing,
so a run in which it stands alone plays no episodes for its rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retro.config import PositiveInt, Section
from retro.training.rewards.base import Reward

if TYPE_CHECKING:  # a config that names this term is loaded without torch
    from retro.training.policy.groups import Group


class BrevityOptions(Section):
    words: PositiveInt = 40
    """A response of so many words or fewer loses nothing; one of twice as many loses 1."""


class Brevity(Reward):
    Options = BrevityOptions
    needs = frozenset[str]()
    options: BrevityOptions

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        return [[self.of(response.text) for response in group.responses] for group in groups]

    def of(self, text: str) -> float:
        """The term of one response, at most 0."""
        return min(0.0, 1 - len(text.split()) / self.options.words)
