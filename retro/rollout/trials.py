"""The one loop of the project: play a task, reflect on the failure, retry.

Collection, plain retry, :class:`~retro.agent.RetroAgent` and every arm of the evaluation call :func:`run_trials`. PPO's
environment reward plays single retries of episodes in the buffer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from retro.models.rounds import all_of
from retro.prompts import PromptTooLongError
from retro.rollout.advice import advised
from retro.rollout.attempts import Attempt, Episodes, Journal, Plan
from retro.rollout.runner import Runner
from retro.types import Episode, Reflection, ReflectionRequest, Reflector, StopReason, Task, derive_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unreflected:
    """A failed episode that is too long for a reflection, so that its chain of retries ends."""

    episode: Episode
    reason: str


Skip = Callable[[Unreflected], None]
"""Called with each failed episode that gets no reflection."""


def warn(skipped: Unreflected) -> None:
    """Log a failed episode that gets no reflection."""
    task = skipped.episode.task
    logger.warning("%s, task %s: no reflection, so no further attempt: %s", task.environment, task.id, skipped.reason)


async def run_trials(
    runner: Runner,
    task: Task,
    plan: Plan,
    reflector: Reflector | None = None,
    journal: Journal | None = None,
    skip: Skip = warn,
) -> list[Episode]:
    """Play ``task``; while it fails and attempts are left, reflect on the failure and retry.

    Each of the group's reflections on a failed episode has its own retry. The chain goes on from one of the failed
    retries, by a seeded choice; it ends when every retry succeeded. Ids and draws do not depend on what else runs at
    the same time, so a run that was killed resumes where the ``journal`` ends, and plays the same tree.

    Args:
        runner: Plays the attempts.
        task: The task to play.
        plan: How many attempts, reflections and controls there are.
        reflector: Writes the reflections. None means plain retry: each trial is a control of the one before.
        journal: Holds the episodes of earlier calls, with their reflections, which are not played again. New episodes
            are added. An episode that an error ended is returned but not added: its chain stops there, and a resumed
            run plays it again.
        skip: Called with a failed episode that is too long for a reflection, which ends the chain.

    Returns:
        All episodes, parents before children; a group's retries in order, then its controls.

    Raises:
        ValueError: if plain retry is planned with groups, controls or advice.
    """
    if reflector is None and (plan.group > 1 or plan.controls):
        raise ValueError("plain retry (no reflector) has one retry a trial: group = 1, controls = 0")
    if reflector is None and plan.advice:
        raise ValueError("advice is a reflection: without a reflector nobody writes it; plan with advice = 0")
    trials = _Trials(runner, plan, Episodes() if journal is None else journal, reflector)
    failed = await trials.play(Attempt(plan.key, task))
    episodes = [failed]
    path: tuple[Reflection, ...] = ()
    while failed.failed and failed.trial + 1 < plan.attempts:
        if reflector is None:
            retries = [await trials.play(Attempt.retry(plan.key, failed, (), None, branch=plan.branch))]
            episodes += retries
        else:
            try:
                written = await trials.reflections(failed)
            except PromptTooLongError as error:
                skip(Unreflected(failed, str(error)))
                break
            begun: list[tuple[Reflection | None, int]] = [(given, index) for index, given in enumerate(written)]
            begun += [(None, index) for index in range(plan.controls)]
            attempts = [Attempt.retry(plan.key, failed, path, *given, plan.branch) for given in begun]
            played = await all_of(trials.play(attempt) for attempt in attempts)
            episodes += played
            if any(episode.broken for episode in played):
                break  # a choice from an incomplete group might differ after resuming
            retries = played[: plan.group]
        failures = [episode for episode in retries if episode.failed]
        if not failures:
            break
        failed = failures[derive_seed(*plan.key, task.id, failed.trial, failed.id, "continue") % len(failures)]
        if failed.reflection is not None:
            path = (*path, failed.reflection)
    return episodes


@dataclass(frozen=True, slots=True)
class _Trials:
    """Plays attempts that are not in the journal, and adds them."""

    runner: Runner
    plan: Plan
    journal: Journal
    reflector: Reflector | None

    async def play(self, attempt: Attempt) -> Episode:
        recorded = self.journal.get(attempt.id)
        if recorded is not None:
            return recorded
        attempt = replace(attempt, advice=self.plan.advice)
        episode = await self.runner.play(attempt)
        while episode.stop is StopReason.ASKED:
            attempt = replace(attempt, paused=await self._advised(episode))
            episode = await self.runner.play(attempt)
        if not episode.broken:
            self.journal.add(episode)
        return episode

    async def reflections(self, failed: Episode) -> list[Reflection]:
        """The group's reflections: those of recorded retries, and new ones for the retries that are missing."""
        key, group = self.plan.key, self.plan.group
        retries = [Attempt(key, failed.task, failed.trial + 1, failed.id, index=index) for index in range(group)]
        recorded = [self.journal.get(retry.id) for retry in retries]
        stored = [episode.reflection if episode else None for episode in recorded]
        written = [reflection for reflection in stored if reflection is not None]
        if len(written) == group:
            return written
        seed = derive_seed(*key, failed.task.id, failed.trial, failed.id, "reflect")
        fresh = await self._written(ReflectionRequest(failed, group, seed))
        return [old or new for old, new in zip(stored, fresh, strict=True)]

    async def _advised(self, paused: Episode) -> Episode:
        """The episode with the advice that its actor asked for; one that is too long keeps the environment's answer."""
        steps = len(paused.trajectory.steps)
        seed = derive_seed(*self.plan.key, paused.task.id, paused.trial, paused.id, steps, "advice")
        try:
            (given,) = await self._written(ReflectionRequest(paused, 1, seed))
        except PromptTooLongError:
            return paused
        return advised(paused, given)

    async def _written(self, request: ReflectionRequest) -> list[Reflection]:
        assert self.reflector is not None, "only a plan with a reflector has reflections"
        written = await self.reflector.reflect(request)
        if len(written) != request.count:
            name = type(self.reflector).__name__
            raise ValueError(f"{name} returned {len(written)} reflections; asked for {request.count}")
        return written
