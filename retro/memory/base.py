"""What carries experience into the actor's prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from retro.types import Episode, Recalled, Reflection, Task


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
        """The entries for the actor's prompt: for the same query and the same bank always the same ones."""
        ...


@runtime_checkable
class LearningMemory(Memory, Protocol):
    """A memory across tasks. Its content, the bank, is folded from finished episodes and never changes while tasks are
    played: whoever plays holds one value, and learning makes another one."""

    @property
    def digest(self) -> str:
        """Names the content of the bank: equal banks, equal digests."""
        ...

    def fold(self, episode: Episode) -> Self:
        """The memory after one more finished episode; itself where there is nothing to learn from it."""
        ...

    def save(self, folder: Path) -> None:
        """Write the bank into ``folder``, which is empty."""
        ...

    def load(self, folder: Path) -> Self:
        """This memory with the bank that :meth:`save` wrote."""
        ...
