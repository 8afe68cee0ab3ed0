"""What a step of the policy stage samples: responses, in groups on one failed episode each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retro.buffer.views import Context
from retro.types import Episode, Reflection


@dataclass(frozen=True, slots=True)
class Response:
    """One reflection that the policy sampled."""

    slot: int
    """Its context's number in the step's order, over all processes; a group shares one."""
    index: int
    """Its number in the group."""
    ids: tuple[int, ...]
    """Its tokens, the end token included where it was written."""
    log_probs: tuple[float, ...]
    """Of the sampler, a value a token."""
    text: str
    finish_reason: Literal["stop", "length"]

    @property
    def reflection(self) -> Reflection:
        """As the actor and the reward model read it."""
        return Reflection(self.text, "ppo", self.index, self.finish_reason)


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one context, and what was gathered about them.

    Of the fields with a value a response, those are empty that no term of the reward needs.
    """

    slot: int
    context: Context
    responses: tuple[Response, ...]
    retries: tuple[Episode, ...] = ()
    """The frozen actor's retry with each response."""
    controls: tuple[Episode, ...] = ()
    """The actor's retries without a reflection. None are played for an actor at temperature 0: each would replay the
    failed episode, whose return stands for theirs."""
    model_scores: tuple[float, ...] = ()
    """The reward model's raw score of each response."""
    rewards: tuple[float, ...] = ()
    """What each response earned: the weighted sum of the terms, less the penalty of one that was cut."""

    @property
    def failed_return(self) -> float:
        """The return of the failed episode."""
        return self.context.episode.return_

    @property
    def retry_returns(self) -> list[float]:
        return [episode.return_ for episode in self.retries]

    @property
    def control_returns(self) -> list[float]:
        return [episode.return_ for episode in self.controls]

    @property
    def whole(self) -> bool:
        """Whether the actor and the environment ended all of its episodes without an error."""
        return not any(episode.broken for episode in (*self.retries, *self.controls))
