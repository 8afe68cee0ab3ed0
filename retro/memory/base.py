"""What carries experience into the actor's prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from retro.types import Recalled, Reflection, Task


@dataclass(frozen=True, slots=True)
class Query:
    """What a memory is asked at the beginning of an episode."""

    task: Task
    opening: str
    """The observation of the reset, which states the task."""
    reflections: tuple[Reflection, ...] = ()
    """Those on the way to this trial, oldest first."""


@runtime_checkable
class Memory(Protocol):
    """Chooses what the actor sees of earlier trials of its task, or of other tasks, and in what words."""

    def recall(self, query: Query) -> Recalled:
        """The entries for the actor's prompt. Equal queries are answered equally."""
        ...
