"""Plays many tasks at once; a collection that was stopped resumes at any episode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from retro.models.rounds import all_of
from retro.rollout.attempts import Episodes, Journal, Plan
from retro.rollout.progress import CollectionProgress
from retro.rollout.runner import Runner
from retro.rollout.trials import Skip, run_trials, warn
from retro.types import Episode, Reflector, Task


async def collect(
    runner: Runner,
    tasks: Sequence[Task],
    plan: Plan,
    reflector: Reflector | None = None,
    journal: Journal | None = None,
    progress: CollectionProgress | None = None,
    skip: Skip = warn,
    keep: Callable[[Episode], Episode] = lambda episode: episode,
) -> list[list[Episode]]:
    """Run :func:`~retro.rollout.trials.run_trials` on every task, as many at a time as the runner plays attempts.

    The outcome does not depend on the runner. An error in one task, or an interrupt (Ctrl-C under ``asyncio.run``),
    cancels the others and is raised. Every episode that was played to its end is in the journal then, and the same call
    goes on from there.

    Args:
        runner, plan, reflector, journal, skip: As in ``run_trials``.
        tasks: Each task once.
        progress: Shows every episode and task; it is entered and left here.
        keep: What is returned of an episode. When a task is finished, the rest of its episodes is forgotten.

    Returns:
        The episodes of each task, in the order of ``tasks``.

    Raises:
        ValueError: if a task is listed twice.
    """
    if len({(task.environment, task.id) for task in tasks}) < len(tasks):
        raise ValueError("a task is listed twice: its episodes would have the same ids")
    begun = asyncio.Semaphore(runner.concurrency)

    async def one(task: Task) -> list[Episode]:
        watched = _Watched(Episodes() if journal is None else journal, progress)
        async with begun:
            episodes = await run_trials(runner, task, plan, reflector, watched, skip)
        if progress:
            progress.task(episodes, recalled=not watched.added)
        return [keep(episode) for episode in episodes]

    with progress or nullcontext():
        return await all_of(one(task) for task in tasks)


@dataclass
class _Watched:
    """A journal of one task that reports what is added to the progress."""

    journal: Journal
    progress: CollectionProgress | None
    added: list[str] = field(default_factory=list)

    def get(self, id: str, /) -> Episode | None:
        return self.journal.get(id)

    def add(self, episode: Episode, /) -> None:
        self.journal.add(episode)
        self.added.append(episode.id)
        if self.progress:
            self.progress.episode()
