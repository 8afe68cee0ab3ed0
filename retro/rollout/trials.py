"""The one loop of the project: play a task, reflect on the failure, retry.

Collection, plain retry, :class:`~retro.agent.RetroAgent`, PPO's environment reward and every arm of the evaluation are
calls of :func:`run_trials` or :func:`retry`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from retro.models.rounds import all_of
from retro.prompts import PromptTooLongError
from retro.rollout.episode import Player
from retro.types import Episode, Reflection, ReflectionRequest, Reflector, Task, derive_seed

logger = logging.getLogger(__name__)

Recall = Callable[[str], Episode | None]
"""The episode of an id, if it was played before."""
Record = Callable[[Episode], None]
"""Keeps an episode the moment it has been played."""
Slots = AbstractAsyncContextManager[object]
"""Entered for the length of each play: a semaphore bounds how many are under way."""


@dataclass(frozen=True, slots=True)
class Unreflected:
    """A failed episode that no reflection could be written on, since its prompt is too long: its chain ends there."""

    episode: Episode
    reason: str


Skip = Callable[[Unreflected], None]
"""Is told of every episode that is not reflected on."""

T = TypeVar("T")


def warn(skipped: Unreflected) -> None:
    """Log it."""
    task = skipped.episode.task
    logger.warning("%s, task %s: no reflection, so no further attempt: %s", task.environment, task.id, skipped.reason)


async def run_trials(
    player: Player,
    task: Task,
    attempts: int,
    reflector: Reflector | None = None,
    group: int = 1,
    controls: int = 0,
    recall: Recall | None = None,
    record: Record | None = None,
    slots: Slots | None = None,
    skip: Skip = warn,
) -> list[Episode]:
    """Play ``task``; while it fails and attempts are left, reflect on the failure and retry.

    Each of the ``group`` reflections on a failed episode has its own retry. The chain goes on from one of the failed
    retries, by a seeded choice; it ends when every retry succeeded. Ids and draws do not depend on what else is under
    way, so a run that was killed goes on where ``recall`` has nothing more, to the same tree.

    Args:
        player: Who plays.
        task: What is played.
        attempts: Trials 0 … ``attempts`` − 1.
        reflector: Who reflects; None is plain retry: each trial is a control of the one before.
        group: Reflections on each failed episode.
        controls: Retries without a reflection beside each group. An actor at temperature 0 plays none: its control
            is a replay of the failed episode.
        recall: What was played before, with the reflections that were stored with it, is not played again.
        record: Called with every episode that was played here. Not with one that an actor's error ended: it is
            returned, its chain stops there, and a resumed run plays it again.
        slots: Bounds the plays under way.
        skip: Told of a failed episode that is too long to be reflected on, which ends the chain.

    Returns:
        All episodes, parents before children; a group's retries in order, then its controls.
    """
    if attempts < 1 or group < 1 or controls < 0:
        raise ValueError(f"attempts ({attempts}) and group ({group}) must be ≥ 1, controls ({controls}) ≥ 0")
    if reflector is None and (group > 1 or controls):
        raise ValueError("plain retry (no reflector) has one retry a trial: group = 1, controls = 0")
    if player.sampling.temperature == 0:
        controls = 0
    ledger = _Ledger(player, recall, record, slots or nullcontext())
    failed = await ledger.play(task)
    episodes = [failed]
    reflections: tuple[Reflection, ...] = ()
    while failed.failed and failed.trial + 1 < attempts:
        if reflector is None:
            retries = [await ledger.retry(failed, (), None, 0)]
            episodes += retries
        else:
            try:
                written = await ledger.reflections(failed, reflector, group)
            except PromptTooLongError as error:
                skip(Unreflected(failed, str(error)))
                break
            plays = [ledger.retry(failed, reflections, reflection, index) for index, reflection in enumerate(written)]
            plays += [ledger.retry(failed, reflections, None, index) for index in range(controls)]
            played = await all_of(plays)
            episodes += played
            if any(episode.broken for episode in played):
                break  # a choice among an incomplete group would be another one after resuming
            retries = played[:group]
        failures = [episode for episode in retries if episode.failed]
        if not failures:
            break
        failed = failures[derive_seed(*player.key, task.id, failed.trial, failed.id, "continue") % len(failures)]
        if failed.reflection is not None:
            reflections = (*reflections, failed.reflection)
    return episodes


async def retry(
    player: Player,
    failed: Episode,
    reflections_before: tuple[Reflection, ...],
    reflection: Reflection | None,
    index: int = 0,
) -> Episode:
    """Play the task of a failed episode once more, with one more reflection; without it, a control.

    Args:
        player: Who plays.
        failed: The episode that is retried.
        reflections_before: The reflections on the way to ``failed``, oldest first.
        reflection: The one on ``failed``; None plays a control.
        index: Its place in the group of retries (or of controls).
    """
    return await player.play(
        failed.task,
        failed.trial + 1,
        reflections_before if reflection is None else (*reflections_before, reflection),
        parent=failed.id,
        index=index,
        control=reflection is None,
    )


@dataclass(frozen=True, slots=True)
class _Ledger:
    """Plays what was not played before, and keeps what was played."""

    player: Player
    known: Recall | None
    record: Record | None
    slots: Slots

    async def play(self, task: Task) -> Episode:
        return self.recall(self.player.episode_id(task)) or await self.kept(lambda: self.player.play(task))

    async def retry(
        self, failed: Episode, before: tuple[Reflection, ...], reflection: Reflection | None, index: int
    ) -> Episode:
        known = self.recall_retry(failed, index, control=reflection is None)
        return known or await self.kept(lambda: retry(self.player, failed, before, reflection, index))

    async def reflections(self, failed: Episode, reflector: Reflector, group: int) -> list[Reflection]:
        """The group's reflections: the stored ones of what was played, new ones only if a retry is missing."""
        known = [self.recall_retry(failed, index, control=False) for index in range(group)]
        stored = [episode.reflection if episode else None for episode in known]
        written = [reflection for reflection in stored if reflection is not None]
        if len(written) == group:
            return written
        request = ReflectionRequest(
            episode=failed,
            count=group,
            seed=derive_seed(*self.player.key, failed.task.id, failed.trial, failed.id, "reflect"),
        )
        fresh = await reflector.reflect(request)
        if len(fresh) != group:
            raise ValueError(f"{type(reflector).__name__} returned {len(fresh)} reflections; asked for {group}")
        return [old or new for old, new in zip(stored, fresh, strict=True)]

    def recall(self, identity: str) -> Episode | None:
        return self.known(identity) if self.known else None

    def recall_retry(self, failed: Episode, index: int, control: bool) -> Episode | None:
        return self.recall(self.player.episode_id(failed.task, failed.trial + 1, failed.id, index, control))

    async def kept(self, play: Callable[[], Awaitable[Episode]]) -> Episode:
        async with self.slots:
            episode = await play()
        if self.record and not episode.broken:
            self.record(episode)
        return episode
