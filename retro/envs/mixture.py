"""Tasks of several environments as one set, for one collection, one adapter and one evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from retro.envs import make_taskset, mixed_names
from retro.envs.base import Environment, TaskSet, UnknownTaskError
from retro.types import Split, Task


class MixtureTasks(TaskSet):
    """The tasks of several task sets, one of each in turn. When a task set has no more tasks, the others continue.

    Args:
        environments: ``[{"name": …, "options": {…}}, …]``, as in ``environment`` of a config.
    """

    name = "mixture"

    def __init__(self, environments: Sequence[Mapping[str, Any]]) -> None:
        mixed_names({"environments": environments})
        made = [make_taskset(entry["name"], entry.get("options")) for entry in environments]
        self._sets = {taskset.name: taskset for taskset in made}
        if len(self._sets) < len(made):
            called = [taskset.name for taskset in made]
            twice = next(name for name in called if called.count(name) > 1)
            raise ValueError(f"mixture: two of its environments are called {twice!r}")
        self.blocking = any(taskset.blocking for taskset in made)

    @property
    def environments(self) -> tuple[str, ...]:
        return tuple(self._sets)

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        wanted = offset + count
        sizes = {name: _size(taskset, split, wanted) for name, taskset in self._sets.items()}
        if sum(sizes.values()) < wanted:
            raise ValueError(f"mixture: split {split} has {sum(sizes.values())} tasks, {wanted} were asked for")
        columns = [taskset.tasks(split, sizes[name]) for name, taskset in self._sets.items()]
        turns = (column[row] for row in range(wanted) for column in columns if row < len(column))
        found = list(islice(turns, offset, wanted))
        if len({task.id for task in found}) < len(found):
            raise ValueError("mixture: two of its environments have tasks with the same id")
        return found

    def make(self, task: Task) -> Environment:
        return self._of(task).make(task)

    def blocks(self, task: Task) -> bool:
        return self._of(task).blocks(task)

    def oracle(self, task: Task) -> str | None:
        return self._of(task).oracle(task)

    def close(self) -> None:
        for taskset in self._sets.values():
            taskset.close()

    def _of(self, task: Task) -> TaskSet:
        if task.environment not in self._sets:
            raise UnknownTaskError(f"mixture: no environment {task.environment!r}; there are: {', '.join(self._sets)}")
        return self._sets[task.environment]


def _size(taskset: TaskSet, split: Split, most: int) -> int:
    """How many tasks a split has, at most ``most``: found by halving, since a task set does not give its size."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        try:
            taskset.tasks(split, 1, offset=middle - 1)
        except ValueError:
            high = middle - 1
        else:
            low = middle
    return low
