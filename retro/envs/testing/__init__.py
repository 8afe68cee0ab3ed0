"""The contract of an environment as one call in a test: ``check_environment(MyTasks())``.

It checks what training relies on: an environment is made from its task's id alone, equal actions have equal results,
many plays can run side by side, nothing that an actor writes breaks a play or makes it endless, and returns are in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

from retro.envs.base import TaskSet
from retro.envs.testing.plays import (
    INVALID_ACTIONS,
    check_ends,
    check_invalid_actions,
    check_replays,
    check_side_by_side,
    check_snapshot,
    check_threads,
)
from retro.envs.testing.tasks import check_rebuilt, check_splits, check_taskset, check_unknown
from retro.types import Task

__all__ = ["check_environment"]

_SCRIPT_WORDS = 10


def check_environment(
    taskset: TaskSet,
    task: Task | None = None,
    actions: Sequence[str] | None = None,
    seed: int = 0,
    max_steps: int = 1000,
) -> None:
    """Check that ``taskset`` and the environment of one of its tasks keep the contract of :mod:`retro.envs.base`.

    Args:
        taskset: the task set, which is not closed.
        task: the task to play; by default the first one of the first split with tasks.
        actions: the script of all plays; one that solves the task checks the most. By default the invalid actions and
            words of the opening observation.
        seed: the seed of every reset.
        max_steps: the number of steps in which a play of invalid actions must end.

    Raises:
        AssertionError: naming the rule that is broken and what was seen.
    """
    check_taskset(taskset)
    listed = check_splits(taskset)
    if task is None:
        task = next(tasks[0] for tasks in listed.values() if tasks)
    check_unknown(taskset, task)
    opening = check_rebuilt(taskset, task, seed)
    if actions is None:
        actions = (*INVALID_ACTIONS, *dict.fromkeys(opening.split()[:_SCRIPT_WORDS]))
    check_replays(taskset, task, actions, seed)
    check_side_by_side(taskset, task, actions, seed)
    check_invalid_actions(taskset, task, seed)
    check_ends(taskset, task, seed, max_steps)
    check_snapshot(taskset, task, actions, seed)
    if taskset.blocking:
        check_threads(taskset, task, actions, seed)
