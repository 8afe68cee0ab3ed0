"""The protocols of memories, which carry experience into the actor's prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

from retro.types import Episode, Recalled, Reflection, Task


@dataclass(frozen=True, slots=True)
class Query:
    """The question to a memory at the beginning of an episode."""

    task: Task
    opening: str
    """The observation of the reset, which states the task."""
    reflections: tuple[Reflection, ...] = ()
    """The reflections that led to this trial, oldest first."""


@runtime_checkable
class Memory(Protocol):
    """Chooses what the actor sees of earlier trials and of other tasks, and in what words."""

    def recall(self, query: Query) -> Recalled:
        """The entries for the actor's prompt; equal queries to equal banks get equal entries."""
        ...


@runtime_checkable
class LearningMemory(Memory, Protocol):
    """A memory that learns across tasks. Its content, the bank, is folded from finished episodes. It is immutable:
    learning makes a new memory, so nothing changes while tasks are played."""

    @property
    def digest(self) -> str:
        """Names the content of the bank: equal banks have equal digests."""
        ...

    def fold(self, episode: Episode) -> Self:
        """The memory after one more finished episode; itself if there is nothing to learn from it."""
        ...

    def save(self, folder: Path) -> None:
        """Write the bank into ``folder``, which is empty."""
        ...

    def load(self, folder: Path) -> Self:
        """This memory with the bank that :meth:`save` wrote."""
        ...


class Ask(Protocol):
    """A language model that a memory asks while it learns."""

    @property
    def tokens(self) -> int:
        """What its answers have cost so far: prompt and completion tokens."""
        ...

    def __call__(self, prompt: str) -> str:
        """Its answer; equal prompts get equal answers."""
        ...


@runtime_checkable
class CuratedMemory(LearningMemory, Protocol):
    """A memory that may ask a language model while it learns, if its section has a ``curator``."""

    def fold_with(self, episodes: Iterable[Episode], ask: Ask) -> Self:
        """The memory after these finished episodes, one after the other."""
        ...


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """An entry of a bank, for people."""

    id: str
    environment: str
    kind: str
    """The kind of task that it was learnt from; may be empty."""
    text: str
    """What an actor would be shown, unless its environment words it anew (``memory.jinja``)."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What the bank counts or estimates about it, by name."""


@runtime_checkable
class ListingMemory(LearningMemory, Protocol):
    """A memory whose bank can be looked at. ``retro memory show`` prints its entries."""

    def listing(self) -> Sequence[ListedEntry]:
        """All entries, the most valuable first."""
        ...
