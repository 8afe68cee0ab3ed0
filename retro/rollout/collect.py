"""Many tasks at once, each through the one loop, resumable at any episode."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext

from retro.models.rounds import all_of
from retro.rollout.episode import Player
from retro.rollout.progress import CollectionProgress
from retro.rollout.trials import Recall, Record, Skip, run_trials, warn
from retro.types import Episode, Reflector, Task


async def collect(
    player: Player,
    tasks: Sequence[Task],
    attempts: int,
    reflector: Reflector | None = None,
    group: int = 1,
    controls: int = 0,
    recall: Recall | None = None,
    record: Record | None = None,
    concurrency: int = 256,
    progress: CollectionProgress | None = None,
    skip: Skip = warn,
) -> list[list[Episode]]:
    """Run :func:`~retro.rollout.trials.run_trials` on every task, ``concurrency`` episodes at a time.

    The outcome does not depend on ``concurrency``. An error in one task cancels the others and is raised; so does an
    interrupt (Ctrl-C under ``asyncio.run``). Either way every episode that was played to its end has been recorded, and
    the same call goes on from there.

    Args:
        player, attempts, reflector, group, controls, recall, record, skip: As in ``run_trials``.
        tasks: What is played; each task once.
        concurrency: Episodes under way at once; as many tasks are begun and not done.
        progress: Is told of every episode and task; entered and left here.

    Returns:
        The episodes of each task, in the order of ``tasks``.

    Raises:
        ValueError: if a task is listed twice, or ``concurrency`` is less than 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be ≥ 1, not {concurrency}")
    if len({(task.environment, task.id) for task in tasks}) < len(tasks):
        raise ValueError("a task is listed twice: its episodes would have the same ids")
    begun, under_way = asyncio.Semaphore(concurrency), asyncio.Semaphore(concurrency)

    async def one(task: Task) -> list[Episode]:
        played: list[str] = []

        def keep(episode: Episode) -> None:
            if record:
                record(episode)
            played.append(episode.id)
            if progress:
                progress.episode()

        async with begun:
            episodes = await run_trials(
                player, task, attempts, reflector, group, controls, recall, keep, under_way, skip
            )
        if progress:
            progress.task(episodes, recalled=not played)
        return episodes

    with progress or nullcontext():
        return await all_of(one(task) for task in tasks)
