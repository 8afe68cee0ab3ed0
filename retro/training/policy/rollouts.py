"""A step's rollouts: the responses that the policy samples, the actor's retries with them, and their rewards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from retro.buffer.views import Context
from retro.config import ConfigError, RunConfig, build
from retro.memory.bank import bank_of
from retro.models.rounds import all_of
from retro.models.running import Generated
from retro.rollout.attempts import Attempt
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.training.policy.groups import Group, Response
from retro.training.policy.models import PolicyModels
from retro.training.rewards.base import Reward
from retro.types import Episode, Reflection, Sampling, derive_seed


class Retries:
    """The frozen actor's retries of failed episodes: true returns, for rewards and for the guard.

    Args:
        environments: those of the failed episodes.
        loop: the whole run's, since a runner may hold connections that belong to it.

    Raises:
        ConfigError: if the config does not play one of ``environments``.
    """

    def __init__(
        self, config: RunConfig, environments: Collection[str], device: torch.device, loop: asyncio.Runner
    ) -> None:
        self._parts = PlayerParts(device, config.actor_ledger)
        taskset = self._parts.taskset(config.environment)
        strange = sorted(set(environments) - set(taskset.environments))
        if strange:
            raise ConfigError(
                f"ppo: the buffer has failed episodes of {', '.join(strange)}, which environment.name="
                f"{config.environment.name} does not play: play them in a mixture, or choose with buffer.environments"
            )
        spec = PlayerSpec.of(config, bank_of(config.memory, config))
        self._runner: Runner = build(config.runner, spec=spec, parts=self._parts)
        self._loop = loop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="retries")
        self._begun: Future[list[Episode]] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._task_known = threading.Event()

    def play(self, attempts: Sequence[Attempt]) -> list[Episode]:
        """Play all attempts concurrently; return their episodes in order. What was begun earlier is finished first."""
        self._finish()
        return self._loop.run(self._played(attempts))

    def begin(self, attempts: Sequence[Attempt]) -> Future[list[Episode]]:
        """The same in a thread, while the caller goes on. The caller does not use the loop before the end."""
        self._finish()
        self._task = None
        self._task_known.clear()
        self._begun = self._thread.submit(self._loop.run, self._played(attempts))
        self._begun.add_done_callback(lambda _: self._task_known.set())
        return self._begun

    async def _played(self, attempts: Sequence[Attempt]) -> list[Episode]:
        self._task = asyncio.current_task()
        self._task_known.set()
        return await all_of(self._runner.play(attempt) for attempt in attempts)

    def _finish(self) -> None:
        if self._begun is not None:
            wait([self._begun])  # its error is for the one who takes the result

    def close(self) -> None:
        """Cancel what is being played, and release what the runner and the environments hold."""
        if self._begun is not None and not self._begun.done():
            self._task_known.wait()
            if self._task is not None:
                self._loop.get_loop().call_soon_threadsafe(self._task.cancel)
            self._finish()
        self._thread.shutdown()
        self._runner.close()
        self._parts.close()


@dataclass(frozen=True, slots=True)
class Ahead:
    """The groups of a later step, whose retries are being played."""

    groups: Sequence[Group]
    playing: Future[list[Episode]]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Samples and scores. Both depend only on (seed, step, slot, index), not on the process or the algorithm."""

    config: RunConfig
    models: PolicyModels
    retries: Retries | None
    """None where no term needs the actor."""
    terms: Sequence[tuple[Reward, float]]
    """The terms of the reward, each with its weight in the sum."""
    missing_end_penalty: float
    """Subtracted from the reward of a response that was cut at ``max_new_tokens``. The response keeps the rest of its
    reward, since the actor reads it as it is; the penalty teaches the policy to end in time."""
    loop: asyncio.Runner
    """The whole run's."""
    turns: int = 1
    """The longest chain of reflections."""
    lag: int = 0
    """How many steps of learning the policy that samples is behind."""

    def sample(self, contexts: Mapping[int, Context], step: int) -> list[Group]:
        """Sample a group of responses to every context of this process, at temperature 1.

        Args:
            contexts: by slot in the step's order.
            step: from 1.
        """
        indices = range(self.config.ppo.group)
        seeds = [[derive_seed(self.config.seed, "ppo", step, slot, index) for index in indices] for slot in contexts]
        sampling = Sampling(1.0, 1.0, self.config.model.max_new_tokens)
        drawn = self.models.sample(list(contexts.values()), sampling, seeds, max(step - 1 - self.lag, 0))
        return [
            Group(slot, context, tuple(_response(slot, index, *answer) for index, answer in enumerate(answers)))
            for (slot, context), answers in zip(contexts.items(), drawn, strict=True)
        ]

    def score(self, groups: Sequence[Group], step: int) -> list[Group]:
        """The groups with their rewards, and with what the terms needed for them; then those of the further turns.

        A group that lost an episode is dropped as a whole, with its chains: the rest would be a biased sample.

        Raises:
            ValueError: if no group is left.
        """
        groups = latest = self._gathered(groups, step)
        for turn in range(2, self.turns + 1):  # every process samples as often, even if none of its retries failed
            latest = self._gathered(self._following(latest, step, turn), step)
            groups = [*groups, *latest]
        return self._rewarded(groups)

    def sample_ahead(self, contexts: Mapping[int, Context], step: int) -> list[Group]:
        """As :meth:`sample`, with the log-probabilities of the policy as it is."""
        return self.models.with_log_probs(self.sample(contexts, step))

    def begin(self, groups: Sequence[Group], step: int) -> Ahead:
        """Begin to play the retries of groups that were sampled ahead. Other retries wait until these have ended."""
        assert self.retries is not None
        groups = self._scored_by_model(groups)
        return Ahead(groups, self.retries.begin(self._attempts(groups, step)))

    def finish(self, ahead: Ahead) -> list[Group]:
        """As :meth:`score`, of groups whose retries were begun earlier."""
        return self._rewarded(self._with_episodes(ahead.groups, ahead.playing.result()))

    def _rewarded(self, groups: Sequence[Group]) -> list[Group]:
        lost = {group.slot for group in groups if not group.whole}
        whole = [group for group in groups if group.slot not in lost]
        if groups and not whole:
            raise ValueError(
                f"the actor (or the environment) failed in every one of {len(groups)} groups of retries: is its server "
                "still there?"
            )
        rewards = self.loop.run(self._rewards(whole))
        return [replace(group, rewards=tuple(own)) for group, own in zip(whole, rewards, strict=True)]

    @property
    def _needs(self) -> frozenset[str]:
        return frozenset[str]().union(*(reward.needs for reward, _ in self.terms))

    def _gathered(self, groups: Sequence[Group], step: int) -> list[Group]:
        """The groups with what the terms need."""
        groups = self._scored_by_model(groups)
        if not self._needs & {"retries", "controls"}:
            return list(groups)
        assert self.retries is not None
        return self._with_episodes(groups, self.retries.play(self._attempts(groups, step)))

    def _scored_by_model(self, groups: Sequence[Group]) -> Sequence[Group]:
        if "reward_model" not in self._needs:
            return groups
        scores = self.models.scores(groups)
        return [replace(group, model_scores=tuple(own)) for group, own in zip(groups, scores, strict=True)]

    def _following(self, groups: Sequence[Group], step: int, turn: int) -> list[Group]:
        """A group of one response for each retry that failed and is not too long to be reflected on."""
        failed = [
            (group.slot, response.index, Context(retry, (*group.context.path, response.reflection)))
            for group in groups
            if group.whole
            for response, retry in zip(group.responses, group.retries, strict=True)
            if retry.failed
        ]
        failed = [item for item in failed if self.models.fits(item[2])]
        seeds = [[derive_seed(self.config.seed, "ppo", step, slot, index, turn)] for slot, index, _ in failed]
        sampling = Sampling(1.0, 1.0, self.config.model.max_new_tokens)
        drawn = self.models.sample([context for _, _, context in failed], sampling, seeds, step - 1)
        return [
            Group(slot, context, (_response(slot, index, *answer),), turn)
            for (slot, index, context), [answer] in zip(failed, drawn, strict=True)
        ]

    @property
    def _plays(self) -> tuple[int, int]:
        """How many retries and how many controls a group has."""
        size = self.config.ppo.group if "retries" in self._needs else 0
        controls = max((reward.controls for reward, _ in self.terms), default=0) if "controls" in self._needs else 0
        return size, controls if self.config.actor.temperature else 0  # at 0, each would repeat the failed episode

    def _attempts(self, groups: Sequence[Group], step: int) -> list[Attempt]:
        """The retries of all groups, then their controls."""
        size, controls = self._plays
        key = (self.config.seed, "ppo", step)
        begun: list[tuple[Context, Reflection | None, int]] = [
            (group.context, response.reflection, group.slot * size + response.index)
            for group in groups
            for response in group.responses[:size]
        ]
        begun += [(group.context, None, group.slot * controls + index) for group in groups for index in range(controls)]
        branch = self.config.collect.branch
        return [
            Attempt.retry(key, context.episode, context.path, reflection, index, branch)
            for context, reflection, index in begun
        ]

    def _with_episodes(self, groups: Sequence[Group], played: Sequence[Episode]) -> list[Group]:
        """The groups with the episodes of their :meth:`_attempts`."""
        size, controls = self._plays
        episodes = iter(played)
        retries = [tuple(islice(episodes, len(group.responses[:size]))) for group in groups]
        return [
            replace(group, retries=own, controls=tuple(islice(episodes, controls)))
            for group, own in zip(groups, retries, strict=True)
        ]

    async def _rewards(self, groups: Sequence[Group]) -> list[list[float]]:
        scored = await asyncio.gather(*(reward.score(groups) for reward, _ in self.terms))
        return [
            [
                sum(weight * values[row][index] for (_, weight), values in zip(self.terms, scored, strict=True))
                - (self.missing_end_penalty if response.finish_reason == "length" else 0.0)
                for index, response in enumerate(group.responses)
            ]
            for row, group in enumerate(groups)
        ]


def _response(slot: int, index: int, written: Generated, text: str) -> Response:
    return Response(slot, index, tuple(written.ids), tuple(written.log_probs), text, written.finish_reason)
