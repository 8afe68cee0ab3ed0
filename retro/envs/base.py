"""Where tasks are played: the environment protocol (Gymnasium's words and tuple, text in and out) and the task set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from retro.types import Split, Task

StepResult = tuple[str, float, bool, bool, dict[str, Any]]
"""(observation, reward, terminated, truncated, info)"""


class UnknownTaskError(LookupError):
    """A task id that the environment cannot rebuild."""


class EnvironmentFailedError(RuntimeError):
    """The environment itself broke (a worker process died, a server is gone): the episode is reported, not counted.

    Its text is kept with the episode: it names what failed, and holds no secrets.
    """


@runtime_checkable
class Environment(Protocol):
    """One task, being played. An invalid action is an observation that says what is allowed, never an exception.

    Derive from it: then only :meth:`reset` and :meth:`step` must be written.
    """

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over; return the opening observation, which states the task, and info.

        Raises:
            EnvironmentFailedError: as :meth:`step` may, too.
        """
        ...

    def step(self, action: str) -> StepResult:
        """Act; return (observation, reward, terminated, truncated, info). ``info["success"]`` is always there.

        The rewards of an episode add up to its return, in [0, 1].
        """
        ...

    def snapshot(self) -> Any:
        """The whole state as plain JSON, for :meth:`restore`. Optional."""
        kind = type(self).__name__
        raise NotImplementedError(f"{kind} cannot be asked for its state")

    def restore(self, state: Any) -> None:
        """Go back to a snapshot, of this play or of another one of the same task."""
        kind = type(self).__name__
        raise NotImplementedError(f"{kind} cannot be given a state")

    def close(self) -> None:
        """Give back what is held (a process, a connection). Called once a play is over, however it ended."""
        return None


class ReplayedEnvironment(Environment):
    """One whose engine has no state to copy: a snapshot is the actions so far, and restoring plays them again.

    ``reset`` empties ``played``, ``step`` appends to it what must be played again to come to the same state.
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
    """An environment's tasks: what there is, and how one is rebuilt from its id alone."""

    name: str
    blocking: bool = False
    """Whether a step waits for something else than this process (a worker, a server): it is then played in a thread."""

    @property
    def environments(self) -> tuple[str, ...]:
        """What its tasks' ``environment`` can be."""
        return (self.name,)

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

    def blocks(self, task: Task) -> bool:
        """Whether a step of ``task`` waits: :attr:`blocking`, which a mixture's tasks do not share.

        Raises:
            UnknownTaskError: as :meth:`make` does.
        """
        return self.blocking

    def oracle(self, task: Task) -> str | None:
        """The reflection of someone who knows the whole task; None where the environment cannot give one."""
        return None

    def close(self) -> None:
        """Give back what all plays share (worker processes, connections)."""
        return None
