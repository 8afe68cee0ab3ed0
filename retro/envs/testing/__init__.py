"""The contract of an environment as one call: ``check_environment(MyTasks())`` in a test of yours.

What is checked is what training relies on: that a task's environment is rebuilt from its id alone, that equal actions
play equally, that many plays go on side by side, that nothing an actor writes breaks a play or makes it endless, and
that returns lie in [0, 1].
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
        taskset: The task set. It is not closed: it stays yours.
        task: The task that is played; by default the first one of the first split that has any.
        actions: The script that is played again and again, as far as the play lasts; one that wins shows the most. By
            default the invalid actions and words of the opening observation.
        seed: What every reset is given.
        max_steps: In how many steps a play of invalid actions must be over.

    Raises:
        AssertionError: names the rule that is broken and what was seen.
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
