"""Worker processes from the side of the process that started them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

from retro.rollout.attempts import Attempt
from retro.rollout.worker import ENDS_IN_SECONDS, START, Setup
from retro.types import Episode

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Job:
    """An attempt that somebody waits for."""

    number: int
    player: bytes
    attempt: Attempt
    episode: asyncio.Future[Episode]
    losses: int = 0
    """How many processes died while they played it."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The message of a worker that was not ready: it can play."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The message of a worker that is still not ready."""

    what: str
    """What it waits for."""
    patience: float
    """The seconds after which a run stops that has no other worker."""


class Worker(ABC):
    """One process, from the side of the process that started it.

    Args:
        slot: Its number among those that run at the same time.
        receive: Called in a thread with every message, and last with how the process ended.
    """

    def __init__(self, slot: int, receive: Receive) -> None:
        self.slot = slot
        self.receive = receive
        self.jobs: dict[int, Job] = {}
        self.players: set[int] = set()
        """The players that it was told to build."""
        self.ready = True
        """Whether it is given attempts."""

    @abstractmethod
    def send(self, message: Any) -> None:
        """Send a message, without waiting."""

    @abstractmethod
    def end(self) -> None:
        """Ask the process to end, after what it was sent."""

    @abstractmethod
    def join(self) -> None:
        """Wait until the process has ended; kill it if it takes too long."""


Receive = Callable[[Worker, Any], None]


class WorkerProcess(Worker):
    """A process on this machine, a child of this one."""

    def __init__(self, slot: int, receive: Receive, setup: Setup) -> None:
        super().__init__(slot, receive)
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._connection, its_own = socket.socketpair()
        with its_own:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore::FutureWarning", "-c", START, str(its_own.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[its_own.fileno()],
                process_group=0,  # Ctrl-C is for the process that started it
                env=_environment(setup.processes),
            )
        self.send(setup)
        self._threads = [Thread(target=target, daemon=True) for target in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def send(self, message: Any) -> None:
        self._outgoing.put(pickle.dumps(message))

    def end(self) -> None:
        self._outgoing.put(None)

    def join(self) -> None:
        self.end()
        try:
            self.process.wait(ENDS_IN_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def _write(self) -> None:
        """A thread of its own: a process that imports a large package does not read for a while."""
        with contextlib.suppress(OSError):  # it died
            while (data := self._outgoing.get()) is not None:
                self._connection.sendall(data)
            self._connection.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        with self._connection.makefile("rb") as stream:
            try:
                while True:
                    self.receive(self, pickle.load(stream))
            except (EOFError, OSError, pickle.UnpicklingError):
                pass
            except Exception:
                logger.exception("a worker process sent what cannot be read")
        try:
            code = self.process.wait(ENDS_IN_SECONDS)
        except subprocess.TimeoutExpired:  # without its connection it is of no use
            self.process.kill()
            code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        self.receive(self, how)


def _environment(processes: int) -> dict[str, str]:
    """The caller's environment and import path, with its share of the cores."""
    threads = str(_threads(processes))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path),
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),  # sets have one order in all of them
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }


def _threads(processes: int) -> int:
    """The threads that each process computes with: its share of the cores, or what this process computes with if that
    is less."""
    torch = sys.modules.get("torch")
    here: int = torch.get_num_threads() if torch else cores()
    return min(here, max(1, cores() // processes))


def cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
