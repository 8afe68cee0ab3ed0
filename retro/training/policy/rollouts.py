"""A step's rollouts: the groups of responses that the policy samples, and the rewards that they earn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retro.buffer.views import Context
from retro.config import RunConfig
from retro.rollout.attempts import Attempt, Key
from retro.training.policy.groups import Group, Response
from retro.training.policy.models import PolicyModels
from retro.training.policy.retries import Retries
from retro.training.rewards.base import Reward
from retro.types import Episode, Reflection, Sampling, derive_seed


@dataclass(frozen=True, slots=True)
class Term:
    """A term of the reward with its weight in the sum."""

    reward: Reward
    weight: float


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Samples and scores; both depend on (seed, step, slot, index) alone, whichever process and algorithm asks."""

    config: RunConfig
    models: PolicyModels
    retries: Retries | None
    """None where no term needs the actor."""
    terms: Sequence[Term]
    missing_end_penalty: float
    """Taken from the reward of a response that was cut at ``max_new_tokens`` before its end token. It keeps what it
    earned otherwise: the actor reads it as it stands, and it must still learn to end."""
    loop: asyncio.Runner
    """Of the whole run."""

    def sample(self, contexts: Mapping[int, Context], step: int) -> list[Group]:
        """A group of responses to every context of this process, by the policy at temperature 1.

        Args:
            contexts: slot in the step's order → context.
            step: from 1.
        """
        indices = range(self.config.ppo.group)
        seeds = [[derive_seed(self.config.seed, "ppo", step, slot, index) for index in indices] for slot in contexts]
        sampling = Sampling(1.0, 1.0, self.config.model.max_new_tokens)
        drawn = self.models.sample(list(contexts.values()), sampling, seeds, step - 1)
        return [
            Group(
                slot,
                context,
                tuple(
                    Response(slot, index, tuple(written.ids), tuple(written.log_probs), text, written.finish_reason)
                    for index, (written, text) in enumerate(answers)
                ),
            )
            for (slot, context), answers in zip(contexts.items(), drawn, strict=True)
        ]

    def score(self, groups: Sequence[Group], step: int) -> list[Group]:
        """The groups with their rewards, and with what the terms needed for them.

        A group that lost an episode is left out, whole: what is left of it would be a biased part.

        Raises:
            ValueError: if no group is left.
        """
        needs = frozenset[str]().union(*(term.reward.needs for term in self.terms))
        if "reward_model" in needs:
            scores = self.models.scores(groups)
            groups = [replace(group, model_scores=tuple(own)) for group, own in zip(groups, scores, strict=True)]
        if needs & {"retries", "controls"}:
            groups = self._retried(groups, step, needs)
        whole = [group for group in groups if group.whole]
        if groups and not whole:
            raise ValueError(
                f"the actor (or the environment) failed in every one of {len(groups)} groups of retries: is its server "
                "still there?"
            )
        rewards = self.loop.run(self._rewards(whole))
        return [replace(group, rewards=tuple(own)) for group, own in zip(whole, rewards, strict=True)]

    def _retried(self, groups: Sequence[Group], step: int, needs: frozenset[str]) -> list[Group]:
        """The groups with the actor's retries and controls, played together."""
        assert self.retries is not None
        size = self.config.ppo.group if "retries" in needs else 0
        controls = max((term.reward.controls for term in self.terms), default=0) if "controls" in needs else 0
        controls = controls if self.config.actor.temperature else 0  # else each would replay the failed episode
        key = (self.config.seed, "ppo", step)
        attempts = [
            _attempt(key, group, response.reflection, group.slot * size + response.index)
            for group in groups
            for response in group.responses[:size]
        ]
        attempts += [
            _attempt(key, group, None, group.slot * controls + index) for group in groups for index in range(controls)
        ]
        episodes = self.retries.play(attempts)
        retries = _shared_out(episodes[: size * len(groups)], size, len(groups))
        beside = _shared_out(episodes[size * len(groups) :], controls, len(groups))
        return [
            replace(group, retries=own, controls=without)
            for group, own, without in zip(groups, retries, beside, strict=True)
        ]

    async def _rewards(self, groups: Sequence[Group]) -> list[list[float]]:
        scored = await asyncio.gather(*(term.reward.score(groups) for term in self.terms))
        return [
            [
                sum(term.weight * values[row][index] for term, values in zip(self.terms, scored, strict=True))
                - (self.missing_end_penalty if response.finish_reason == "length" else 0.0)
                for index, response in enumerate(group.responses)
            ]
            for row, group in enumerate(groups)
        ]


def _attempt(key: Key, group: Group, reflection: Reflection | None, index: int) -> Attempt:
    """A retry of the group's failed episode; without a reflection, a control."""
    return Attempt.retry(key, group.context.episode, group.context.path, reflection, index)


def _shared_out(episodes: Sequence[Episode], size: int, groups: int) -> list[tuple[Episode, ...]]:
    return [tuple(episodes[row * size : (row + 1) * size]) for row in range(groups)]
