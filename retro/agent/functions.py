"""Your own task, given as two functions in Gymnasium's shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from retro.envs.base import Environment, StepResult, TaskSet
from retro.types import Split, Task


@dataclass(frozen=True)
class FunctionEnvironment(TaskSet):
    """A task set made of a ``reset`` and a ``step`` function that share their state: one play at a time.

    Args:
        reset: Starts the task of an id over; returns the opening observation, which states the task.
        step: Takes the actor's action; returns (observation, reward, terminated, truncated, info). The rewards of a
            play add up to its return, in [0, 1]. ``info["success"]`` says whether the task was solved; left out, it
            was if the play terminated with a return of 1.
        horizon: Steps after which a play is truncated.
        name: What it is called in episodes.
        blocking: Whether a step waits for something else (a server, a process). The functions are then called in a
            thread, so that the event loop goes on.
    """

    reset: Callable[[str], str]
    step: Callable[[str], StepResult]
    horizon: int = 50
    name: str = "custom"
    blocking: bool = False

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        """Raises ValueError: there is no list of tasks, so the caller has to name their ids."""
        raise ValueError(f"environment {self.name!r} is made of functions and lists no tasks: name their ids")

    def make(self, task: Task) -> FunctionPlay:
        return FunctionPlay(self, task.id)

    def oracle(self, task: Task) -> str | None:
        return None


@dataclass
class FunctionPlay(Environment):
    """One play through the two functions."""

    functions: FunctionEnvironment
    id: str
    steps: int = 0
    rewards: list[float] = field(default_factory=list)

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.steps, self.rewards = 0, []
        return self.functions.reset(self.id), {"success": False}

    def step(self, action: str) -> StepResult:
        answer = self.functions.step(action)
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise ValueError(
                f"the step function of {self.functions.name!r} returned {answer!r}; it must return the tuple "
                "(observation, reward, terminated, truncated, info)"
            )
        observation, reward, terminated, truncated, info = answer
        self.steps += 1
        self.rewards.append(reward)
        success = info.get("success", terminated and sum(self.rewards) >= 1.0)
        truncated = truncated or (not terminated and self.steps >= self.functions.horizon)
        return observation, float(reward), terminated, truncated, {**info, "success": bool(success)}
