"""What task sets share whose tasks are the seeds of somebody else's environment: names, ends, returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retro.envs.base import ReplayedEnvironment, StepResult, TaskSet, UnknownTaskError
from retro.types import Split, Task

_SPLIT_SIZE = 1_000_000
_FIRST_SEED = {Split.TRAIN: 0, Split.VALIDATION: _SPLIT_SIZE, Split.TEST: 2 * _SPLIT_SIZE}
_GRID = 2**30
"""Returns are rounded to multiples of 1 / this, so that their differences, the rewards, add up exactly."""
_MOST_ECHOED = 100


class SeededTasks(TaskSet):
    """A million seeds in each split; each is a task called ``seed-N``."""

    kind: str
    """Of its tasks."""

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        if offset + count > _SPLIT_SIZE:
            raise ValueError(f"{self.name}: split {split} has {_SPLIT_SIZE:,} seeds, {offset + count:,} were asked for")
        first = _FIRST_SEED[split] + offset
        return [Task(self.name, f"seed-{seed}", split, self.kind) for seed in range(first, first + count)]

    def seed_of(self, task: Task) -> int:
        """The seed that a task is.

        Raises:
            UnknownTaskError: if its id is not one of these.
        """
        word, _, number = task.id.partition("-")
        if word != "seed" or not number.isdecimal() or int(number) >= len(Split) * _SPLIT_SIZE:
            last = len(Split) * _SPLIT_SIZE - 1
            raise UnknownTaskError(f"{self.name}: no task {task.id!r}; ids are seed-0 to seed-{last}")
        return int(number)


@dataclass(frozen=True, slots=True)
class Rules:
    """When a play ends, and its return."""

    low: float
    """The sum of rewards that counts as a return of 0."""
    high: float
    """The sum of rewards that counts as a return of 1."""
    success_at: float
    """The return from which a play that is over is a success, unless the environment says whether it is."""
    horizon: int
    """The step limit, which also counts invalid actions."""

    def return_of(self, total: float) -> float:
        """The sum of an environment's rewards as a return in [0, 1]."""
        share = min(max((total - self.low) / (self.high - self.low), 0.0), 1.0)
        return round(share * _GRID) / _GRID

    @classmethod
    def of(cls, environment: str, return_range: Sequence[float], success_at: float, horizon: int) -> Rules:
        """
        Raises:
            ValueError: if the range is empty.
        """
        low, high = return_range
        if low >= high:
            raise ValueError(f"{environment}: return_range: {low:g} must be below {high:g}")
        return cls(low, high, success_at, horizon)


class SeededPlay(ReplayedEnvironment):
    """A play that ends, pays and succeeds by :class:`Rules`. A subclass calls :meth:`begin` and :meth:`count`."""

    def __init__(self, seed: int, rules: Rules) -> None:
        self._seed = seed
        self._rules = rules
        self.played = []

    @property
    def horizon(self) -> int:
        return self._rules.horizon

    def begin(self) -> None:
        """Start over."""
        self.played = []
        self._sum = self._return = 0.0
        self._terminated = self._truncated = self._success = False

    @property
    def over(self) -> StepResult | None:
        """The answer to every further action, once the play has ended."""
        if not (self._terminated or self._truncated):
            return None
        return "the play is over", 0.0, self._terminated, self._truncated, {"success": self._success}

    def count(
        self,
        observation: str,
        reward: float = 0.0,
        terminated: bool = False,
        truncated: bool = False,
        success: bool | None = None,
    ) -> StepResult:
        """The result of a step, after its action was put into ``played``.

        Args:
            success: Whether the play has succeeded, if the environment says so.
        """
        rules, before = self._rules, self._return
        self._sum += reward
        self._return = rules.return_of(self._sum)
        over = terminated or truncated or len(self.played) >= rules.horizon
        self._success = over and self._return >= rules.success_at if success is None else success
        self._terminated = terminated or self._success  # some environments report success and continue
        self._truncated = over and not self._terminated
        return observation, self._return - before, self._terminated, self._truncated, {"success": self._success}


def echo(action: str) -> str:
    """An actor's text for a message, shortened."""
    text = repr(action)
    return text if len(text) <= _MOST_ECHOED else f"{text[:_MOST_ECHOED]}…"
