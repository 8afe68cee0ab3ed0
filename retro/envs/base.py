"""Where tasks are played: the environment protocol (Gymnasium's words and tuple, text in and out) and the task set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from retro.types import Split, Task


class UnknownTaskError(LookupError):
    """A task id that the environment cannot rebuild."""


@runtime_checkable
class Environment(Protocol):
    """One task, being played. An invalid action is an observation, never an exception."""

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over; return the opening observation, which states the task, and info."""
        ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act; return (observation, reward, terminated, truncated, info). ``info["success"]`` is always there.

        The rewards of an episode add up to its return, in [0, 1].
        """
        ...

    def snapshot(self) -> Any:
        """The whole state as plain JSON, for :meth:`restore`. Optional: may raise ``NotImplementedError``."""
        ...

    def restore(self, state: Any) -> None:
        """Go back to a snapshot."""
        ...


@runtime_checkable
class TaskSet(Protocol):
    """An environment's tasks: what there is, and how one is rebuilt from its id alone."""

    name: str

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        """``count`` tasks of a split, in the environment's order, after ``offset`` of them.

        Raises:
            ValueError: if the split has fewer.
        """
        ...

    def make(self, task: Task) -> Environment:
        """A fresh environment for one play of ``task``.

        Raises:
            UnknownTaskError: if the id is not one of this environment's.
        """
        ...

    def oracle(self, task: Task) -> str | None:
        """The reflection of someone who knows the whole task; None where the environment cannot give one."""
        ...
