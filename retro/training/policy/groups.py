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
    """The number of its group's context in the step's order, over all processes."""
    index: int
    """Its number in the group; further on in a chain, the number of the chain's first response."""
    ids: tuple[int, ...]
    """Its tokens, including the end token if the policy wrote one."""
    log_probs: tuple[float, ...]
    """By the sampler, one for each token."""
    text: str
    finish_reason: Literal["stop", "length"]
    old_log_probs: tuple[float, ...] = ()
    """Under the policy that sampled it, by the training forward pass, one for each token; empty if this is still the
    policy that learns from it (``ppo.lag`` 0)."""

    @property
    def reflection(self) -> Reflection:
        """As the actor and the reward model read it."""
        return Reflection(self.text, "ppo", self.index, self.finish_reason)


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one context, and what was gathered about them; a field that no term of the reward needs is
    empty.

    With ``ppo.turns`` above 1, each response begins a chain. If its retry fails, this is the context of a further
    group, which has the same slot, the next turn, and one response.
    """

    slot: int
    context: Context
    responses: tuple[Response, ...]
    turn: int = 1
    """1 for the responses to a failed episode of the buffer."""
    retries: tuple[Episode, ...] = ()
    """The frozen actor's retry with each response."""
    controls: tuple[Episode, ...] = ()
    """The actor's retries without a reflection. An actor at temperature 0 plays none: each would repeat the failed
    episode, so its return stands for theirs."""
    model_scores: tuple[float, ...] = ()
    """The reward model's raw score of each response."""
    rewards: tuple[float, ...] = ()
    """The weighted sum of the terms for each response, less the penalty if the response was cut."""

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
        """Whether all of its episodes ended without an error of the actor or the environment."""
        return not any(episode.broken for episode in (*self.retries, *self.controls))
