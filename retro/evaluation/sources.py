"""Reflections that an arm takes from elsewhere: the oracle's, the vague one, and those of other tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from retro.types import Episode, Reflection, ReflectionRequest, Task, derive_seed


@dataclass(frozen=True, slots=True)
class Written:
    """Reflections that exist beforehand: a text for every task."""

    text: Callable[[Task], str]
    source: str

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        text = self.text(request.episode.task)
        return [Reflection(text, self.source, index) for index in range(request.count)]


class NoDonorError(ValueError):
    """No other task has a reflection to take."""


class Shuffled:
    """The reflection that was written for ANOTHER task of the same kind, for the same trial.

    The tasks stand in a seeded circle. A task takes the reflection of the next task of its kind that has one for this
    trial, otherwise for the latest earlier trial; if no task of its kind has one, it asks the other kinds in this way.
    """

    def __init__(self, donors: Mapping[str, Sequence[Episode]], tasks: Sequence[Task], seed: int) -> None:
        """``donors``: the best arm's chain by task id."""
        self._written = {
            (task, episode.trial): episode.reflection
            for task, chain in donors.items()
            for episode in chain
            if episode.reflection is not None
        }
        self._circle = sorted(tasks, key=lambda task: derive_seed(seed, "shuffled", task.environment, task.id))

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        donated = self.donated(request.episode.task, request.episode.trial + 1)
        return [replace(donated, source="shuffled", index=index) for index in range(request.count)]

    def donated(self, task: Task, trial: int) -> Reflection:
        """The reflection that ``task`` gets before its ``trial``.

        Raises:
            NoDonorError: if the best arm reflected on no other task.
        """
        at = next(i for i, other in enumerate(self._circle) if other.id == task.id)
        others = self._circle[at + 1 :] + self._circle[:at]
        same = [other for other in others if other.kind == task.kind]
        for donors in (same, others):
            for earlier, other in product(range(trial, 0, -1), donors):
                if reflection := self._written.get((other.id, earlier)):
                    return reflection
        raise NoDonorError(f"task {task.id}: the best arm reflected on no other task; evaluate more tasks")
