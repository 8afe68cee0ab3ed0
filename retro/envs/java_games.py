"""Games that run in Java processes: which play has which process, and how a game becomes an environment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any, TypeVar

from retro.envs.base import EnvironmentFailedError, ReplayedEnvironment, StepResult, TaskSet
from retro.envs.java import JavaProcess, find_java
from retro.types import Task

T = TypeVar("T")
MAX_ACTION_CHARS = 200
"""A longer text is refused before the engine's parser sees it."""
_ECHO_CHARS = 100
_OVER = "The play is over: nothing changes any more."


@dataclass(frozen=True, slots=True, eq=False)  # comparing the fields would call Java
class Engine:
    """Upstream's interface to one game at a time, in its process."""

    process: JavaProcess
    interface: Any

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the interface (:meth:`JavaProcess.call`)."""
        return self.process.call(self.interface, method, *arguments)

    def texts(self, method: str, *arguments: Any) -> list[str]:
        """Call a method that returns a Java list of strings."""
        strings = self.call(method, *arguments)
        found = [str(self.process.call(strings, "get", index)) for index in range(self.process.call(strings, "size"))]
        self.process.release(strings)
        return found


class EnginePool:
    """The engines that plays use, each in its own process, which is started when it is needed and then used again.

    Upstream's games share state within a process, so two plays in one process would disturb each other.

    Args:
        start: starts a process.
        interface: the Java class of upstream's interface.
        most: the number of engines that plays can have at once.
    """

    def __init__(self, start: Callable[[], JavaProcess], interface: str, most: int) -> None:
        self._start = start
        self._interface = interface
        self._most = most
        self._changed = Condition()
        self._idle: list[Engine] = []
        self._lent: list[Engine] = []
        self._starting = 0

    def borrow(self, wait: bool = True) -> Engine:
        """An engine that nobody else uses until it is given back.

        Args:
            wait: whether to wait while ``most`` are in use. What is not a play must not wait: plays may wait for it.

        Raises:
            EnvironmentFailedError: if no process starts.
        """
        with self._changed:
            while wait and not self._idle and self._busy >= self._most:
                self._changed.wait()
            while self._idle:
                engine = self._idle.pop()
                if engine.process.alive:
                    self._lent.append(engine)
                    return engine
            self._starting += 1
        try:
            process = self._start()
            engine = Engine(process, process.make(self._interface))
        except BaseException:
            with self._changed:
                self._starting -= 1
                self._changed.notify()
            raise
        with self._changed:
            self._starting -= 1
            self._lent.append(engine)
        return engine

    def give_back(self, engine: Engine) -> None:
        """Return an engine that is not used any more, even if its process died."""
        with self._changed:
            if engine in self._lent:
                self._lent.remove(engine)
            keep = engine.process.alive and self._busy + len(self._idle) < self._most
            if keep:
                self._idle.append(engine)
            self._changed.notify()
        if not keep:
            engine.process.close()

    def close(self) -> None:
        """Stop all processes, even those in use. A later play starts a new one."""
        with self._changed:
            engines = [*self._idle, *self._lent]
            self._idle.clear()
            self._lent.clear()
            self._changed.notify_all()
        for engine in engines:
            engine.process.close()

    @property
    def _busy(self) -> int:
        return len(self._lent) + self._starting


@dataclass(frozen=True, slots=True)
class Turn:
    """The answer of a game."""

    observation: str
    score: float
    """Upstream's score, at most 1; negative after a fatal mistake."""
    over: bool = False


class Game(ABC):
    """One task of an upstream package. Each call gets an engine."""

    @abstractmethod
    def start(self, engine: Engine) -> Turn:
        """Start the task, whatever the engine played before."""

    @abstractmethod
    def act(self, engine: Engine, action: str) -> Turn:
        """One action: a line of printable characters."""

    @abstractmethod
    def solve(self, engine: Engine) -> tuple[str, ...]:
        """Actions that solve the task, from upstream's scripted agent."""

    @property
    @abstractmethod
    def allowed(self) -> str:
        """A sentence or two about the actions that there are."""


class JavaPlay(ReplayedEnvironment):
    """One play of a game. Its return is upstream's last score; a negative score counts as 0.

    Args:
        engines: the pool that lends an engine from :meth:`reset` to :meth:`close`.
        steps: the step limit.
    """

    def __init__(self, task: Task, game: Game, engines: EnginePool, steps: int) -> None:
        self.task = task
        self._game = game
        self._engines = engines
        self.horizon = steps
        self._engine: Engine | None = None
        self.played = []
        self._turn: Turn | None = None

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. The game depends on the task alone, so ``seed`` and ``options`` change nothing."""
        if self._engine is None:
            self._engine = self._engines.borrow()
        self.played = []
        opening = self._asked(self._game.start)
        self._turn = Turn(
            opening.observation, 0.0, opening.over
        )  # the score of the start is part of the first step's reward
        return opening.observation, {"success": False}

    def step(self, action: str) -> StepResult:
        before = self._turn
        if before is None:
            raise RuntimeError(f"{self.task.environment} {self.task.id}: reset() comes before step()")
        if self._terminated or self._truncated:
            return _OVER, 0.0, self._terminated, self._truncated, {"success": self._success}
        text = action.strip()
        problem = _problem(text)
        self.played.append("" if problem else text)
        if problem:
            self._turn = Turn(f"{problem} {self._game.allowed}", before.score)
        else:
            self._turn = self._asked(lambda engine: self._game.act(engine, text))
        reward = _return(self._turn) - _return(before)
        return self._turn.observation, reward, self._terminated, self._truncated, {"success": self._success}

    def close(self) -> None:
        if self._engine is not None:
            engine, self._engine, self._turn = self._engine, None, None
            self._engines.give_back(engine)

    def __del__(self) -> None:
        self.close()  # a play that was forgotten must not keep its engine

    @property
    def _success(self) -> bool:
        return self._turn is not None and self._turn.score >= 1

    @property
    def _terminated(self) -> bool:
        return self._turn is not None and (self._turn.over or self._success or self._turn.score < 0)

    @property
    def _truncated(self) -> bool:
        return len(self.played) >= self.horizon and not self._terminated

    def _asked(self, ask: Callable[[Engine], Turn]) -> Turn:
        assert self._engine is not None
        try:
            return ask(self._engine)
        except EnvironmentFailedError:
            self.close()
            raise


class JavaTasks(TaskSet):
    """The tasks of games in one jar.

    Args:
        jar: the package's jar.
        interface: the Java class of upstream's interface.
        steps: the step limit.
        engines: the number of Java processes that play at once.

    Raises:
        ValueError: if there is no Java.
    """

    blocking = True

    def __init__(self, jar: str, interface: str, steps: int, engines: int) -> None:
        self._steps = steps
        self._engines = EnginePool(partial(JavaProcess, self.name, find_java(), Path(jar)), interface, engines)
        self._gold: dict[str, tuple[str, ...]] = {}

    def make(self, task: Task) -> JavaPlay:
        return JavaPlay(task, self._game(task), self._engines, self._steps)

    def oracle(self, task: Task) -> str | None:
        """The actions of :meth:`gold_path`, which may be more than the step limit."""
        actions = self.gold_path(task)
        return f"these actions, in this order, solve the task: {'; '.join(actions)}." if actions else None

    def gold_path(self, task: Task) -> tuple[str, ...]:
        """Actions that solve a task (:meth:`Game.solve`), computed once for each task set.

        Raises:
            UnknownTaskError: if the id is not one of this environment's.
            EnvironmentFailedError: if its engine fails.
        """
        game = self._game(task)
        if task.id not in self._gold:
            self._gold[task.id] = self._asked(game.solve)
        return self._gold[task.id]

    def close(self) -> None:
        self._engines.close()

    def _game(self, task: Task) -> Game:
        raise NotImplementedError

    def _asked(self, ask: Callable[[Engine], T]) -> T:
        """The answer of an engine that is borrowed for one question."""
        engine = self._engines.borrow(wait=False)
        try:
            return ask(engine)
        finally:
            self._engines.give_back(engine)


def echo(action: str) -> str:
    """At most 100 characters of an action, for a message."""
    return action if len(action) <= _ECHO_CHARS else f"{action[: _ECHO_CHARS - 1]}…"


def _problem(action: str) -> str:
    """Why a text cannot be an action; empty if it can."""
    if not action:
        return "That is no action."
    if not action.isprintable():
        return f"{echo(action)!a} is not one line of text: give one action at a time."
    if len(action) > MAX_ACTION_CHARS:
        return f"'{echo(action)}' is too long for an action."
    return ""


def _return(turn: Turn) -> float:
    return min(max(turn.score, 0.0), 1.0)
