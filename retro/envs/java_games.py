"""Plays of games that run in Java processes: who has which process, and how a game is one environment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Condition
from typing import Any

from retro.envs.base import EnvironmentFailedError, ReplayedEnvironment, StepResult
from retro.envs.java import JavaProcess
from retro.types import Task

MAX_ACTION_CHARS = 200
"""A longer text is no action: it is refused before the engine's parser sees it."""
_ECHO_CHARS = 100
_OVER = "The play is over: nothing changes any more."


@dataclass(frozen=True, slots=True, eq=False)  # eq would ask Java
class Engine:
    """Upstream's interface to one game at a time, in its process."""

    process: JavaProcess
    interface: Any

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the interface; raises as :meth:`JavaProcess.call`."""
        return self.process.call(self.interface, method, *arguments)

    def texts(self, method: str, *arguments: Any) -> list[str]:
        """Call a method that returns a Java list of strings."""
        strings = self.call(method, *arguments)
        found = [str(self.process.call(strings, "get", place)) for place in range(self.process.call(strings, "size"))]
        self.process.release(strings)
        return found


class EnginePool:
    """Where plays get their engines from: each in a process of its own, started when it is needed, and used again.

    Upstream's games share state within a process, so that two plays in one would not be two plays.

    Args:
        start: Starts a process.
        interface: The Java class of upstream's interface.
        most: How many engines plays have at once.
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
        """An engine that nobody else uses, until it is given back.

        Args:
            wait: Whether to wait while ``most`` are in use. Who asks between the plays must not: they may wait for it.

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
        """Once an engine is not used any more, also if its process died."""
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
        """Stop all processes, also those in use. A later play starts anew."""
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
    """What a game answers."""

    observation: str
    score: float
    """Upstream's, at most 1; negative after a fatal mistake."""
    over: bool = False


class Game(ABC):
    """One task of one upstream package, on an engine that it is given for every call."""

    @abstractmethod
    def start(self, engine: Engine) -> Turn:
        """Begin at the beginning, whatever the engine played before."""

    @abstractmethod
    def act(self, engine: Engine, action: str) -> Turn:
        """One action: a line of printable characters."""

    @property
    @abstractmethod
    def allowed(self) -> str:
        """A sentence or two that say which actions there are."""


class JavaPlay(ReplayedEnvironment):
    """One play of a game: its return is upstream's last score, a negative one counted as 0.

    Args:
        task: What is played.
        game: It, in upstream's words.
        engines: Where the engine comes from, at the reset; it is given back by :meth:`close`.
        steps: The step limit.
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
        self._turn = Turn(opening.observation, 0.0, opening.over)  # what the start is worth, the first step is paid
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
        self.close()  # a play that was forgotten must not keep its engine from others

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


def at_least_one(environment: str, option: str, value: Any) -> int:
    """``value``, which must be a whole number of at least 1.

    Raises:
        ValueError: if it is not; names the option.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{environment}: {option} must be a whole number of at least 1, not {value!r}")
    return value


def echo(action: str) -> str:
    """An action as a message repeats it: at most 100 characters."""
    return action if len(action) <= _ECHO_CHARS else f"{action[: _ECHO_CHARS - 1]}…"


def _problem(action: str) -> str:
    """Why a text is no action at all; empty if it may be one."""
    if not action:
        return "That is no action."
    if not action.isprintable():
        return f"{echo(action)!a} is not one line of text: give one action at a time."
    if len(action) > MAX_ACTION_CHARS:
        return f"'{echo(action)}' is too long for an action."
    return ""


def _return(turn: Turn) -> float:
    return min(max(turn.score, 0.0), 1.0)
