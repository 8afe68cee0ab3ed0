"""The protocols of environments (Gymnasium's words and tuple, text in and out) and of task sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from retro.types import Split, Task

StepResult = tuple[str, float, bool, bool, dict[str, Any]]
"""(observation, reward, terminated, truncated, info)"""


class UnknownTaskError(LookupError):
    """A task id from which the environment cannot make a task."""


class EnvironmentFailedError(RuntimeError):
    """The environment itself failed (a worker process died, a server is gone): the episode is reported, not counted.

    The message names what failed. It is kept with the episode, so it must not hold secrets.
    """


@runtime_checkable
class Environment(Protocol):
    """One play of a task. The answer to an invalid action is an observation that says what is allowed, never an error.

    A subclass needs only :meth:`reset` and :meth:`step`.
    """

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over; return the opening observation, which states the task, and info.

        Raises:
            EnvironmentFailedError: from this method and from :meth:`step`.
        """
        ...

    def step(self, action: str) -> StepResult:
        """Act; return (observation, reward, terminated, truncated, info). ``info["success"]`` is always there.

        The rewards of an episode add up to its return, in [0, 1].
        """
        ...

    def snapshot(self) -> Any:
        """The whole state as plain JSON, for :meth:`restore`. Optional."""
        kind = type(self).__name__  # a body of one raise would make the method abstract
        raise NotImplementedError(f"{kind} cannot return its state")

    def restore(self, state: Any) -> None:
        """Go back to a snapshot, of this play or of another play of the same task."""
        kind = type(self).__name__
        raise NotImplementedError(f"{kind} cannot restore a state")

    def close(self) -> None:
        """Release what is held (a process, a connection). Called after every play, however it ended."""
        return None


class ReplayedEnvironment(Environment):
    """An environment without a state to copy: a snapshot is the list of actions so far, and restoring plays them again.

    ``reset`` empties ``played``, and ``step`` appends the action that must be played again to reach the same state.
    """

    played: list[str]

    def snapshot(self) -> dict[str, Any]:
        return {"actions": list(self.played)}

    def restore(self, state: Any) -> None:
        self.reset()
        for action in state["actions"]:
            self.step(action)


@runtime_checkable
class TaskSet(Protocol):
    """The tasks of an environment, each of which is made from its id alone."""

    name: str
    blocking: bool = False
    """Whether a step waits for another process or a server. Such an environment is played in threads."""

    @property
    def environments(self) -> tuple[str, ...]:
        """The possible values of its tasks' ``environment``."""
        return (self.name,)

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        """``count`` tasks of a split, in the environment's order, after the first ``offset``.

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

    def blocks(self, task: Task) -> bool:
        """Whether a step of ``task`` waits: :attr:`blocking`, which may differ among the tasks of a mixture.

        Raises:
            UnknownTaskError: as :meth:`make` does.
        """
        return self.blocking

    def oracle(self, task: Task) -> str | None:
        """A reflection by someone who knows the whole task; None if the environment cannot give one."""
        return None

    def close(self) -> None:
        """Release what all plays share (worker processes, connections)."""
        return None
