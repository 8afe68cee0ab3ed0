"""ALFWorld's worker processes, from the side of the plays: they are started, loaded evenly, replaced, and stopped.

TextWorld's engine does not free memory, keeps state in a shared library and does not support threads, so it runs in its
own processes. They are new interpreters that exchange JSON over pipes; forks would copy a process with threads, and
``multiprocessing`` spawns would import the caller's main module again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any

from retro.envs.base import EnvironmentFailedError
from retro.envs.child import Child


class Worker(Child):
    """One process. Any thread may use it; it answers one request at a time."""

    def __init__(self) -> None:
        super().__init__("alfworld", [sys.executable, "-P", "-m", "retro.envs.alfworld.worker"], _worker_environment())
        self.games = 0
        """The number of games that it plays now."""
        self.started = 0
        """The number of games that it has started."""
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send ``request``, and wait for the answer.

        Raises:
            EnvironmentFailedError: if the game failed, or the process is gone.
        """
        with self._lock:
            try:
                self.send(request)
                line = self.output.readline()
            except (OSError, ValueError):  # the process or stop() closed the pipe
                line = ""
            except BaseException:  # interrupted before the answer, which the next request would then get
                self.kill()
                raise
        if not line.endswith("\n"):
            raise EnvironmentFailedError(f"alfworld: {self.ended()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EnvironmentFailedError(f"alfworld: the engine failed: {answer['error']}")
        return answer

    def stop(self) -> None:
        """End the process, which it does by itself when its input ends."""
        self.close_input()
        self.ended()
        with self._lock:
            self.output.close()


class Seat:
    """The seat of one game in a worker."""

    def __init__(self, pool: WorkerPool, worker: Worker, number: int) -> None:
        self._pool = pool
        self._number = number
        self.worker = worker

    def start(self, data: dict[str, str], asked: Sequence[Any] = ()) -> dict[str, Any]:
        """Start a game; the answer has ``feedback``, ``commands``, ``won`` and ``met`` (the milestones ``asked``)."""
        return self.worker.ask({"do": "start", "game": self._number, "data": data, "asked": list(asked)})

    def step(self, command: str) -> dict[str, Any]:
        return self.worker.ask({"do": "step", "game": self._number, "command": command})

    def leave(self) -> None:
        """Give the seat back. Call it only once."""
        with contextlib.suppress(EnvironmentFailedError):  # the worker is gone
            self.worker.ask({"do": "close", "game": self._number})
        self._pool.left(self.worker)


class WorkerPool:
    """The workers of one task set.

    Args:
        workers: the number of workers that take new games.
        games_per_worker: after so many games a worker takes no more, and ends with the last of them. Until then it
            exists in addition to ``workers``.
    """

    def __init__(self, workers: int, games_per_worker: int) -> None:
        self._count = workers
        self._games_per_worker = games_per_worker
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._numbers = count(1)
        weakref.finalize(self, _stop_all, self._workers)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All workers, including those that only finish their games."""
        return tuple(self._workers)

    def seat(self) -> Seat:
        """A seat in the least loaded worker. If all are busy and more are allowed, a new one is started."""
        with self._lock:
            dead = [worker for worker in self._workers if not worker.alive]
            for worker in dead:
                self._workers.remove(worker)
                worker.stop()
            taking = [worker for worker in self._workers if worker.started < self._games_per_worker]
            if len(taking) < self._count and all(worker.games for worker in taking):
                taking = [Worker()]
                self._workers.extend(taking)
            worker = min(taking, key=lambda worker: worker.games)
            worker.games += 1
            worker.started += 1
            return Seat(self, worker, next(self._numbers))

    def left(self, worker: Worker) -> None:
        """A game of ``worker`` is over."""
        with self._lock:
            worker.games -= 1
            finished = worker.games == 0 and worker.started >= self._games_per_worker and worker in self._workers
            if finished:
                self._workers.remove(worker)
        if finished:
            worker.stop()

    def close(self) -> None:
        """Stop all workers, even those with plays that are not over."""
        with self._lock:
            _stop_all(self._workers)


def _stop_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().stop()


def _worker_environment() -> dict[str, str]:
    """The caller's environment and import path, with a fixed order of sets, so that games play equally everywhere."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path),
        "PYTHONHASHSEED": "0",
        "ALFWORLD_DATA": tempfile.gettempdir(),  # importing alfworld creates this folder; a worker needs no data
    }
