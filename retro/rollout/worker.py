"""A worker process: it builds players from their descriptions, and plays what it is sent.

:func:`serve` is what every worker does. :func:`main` is the worker of the runner ``processes``.
:mod:`retro.rollout.processes` starts it with one end of a pair of sockets, through which both sides send pickles. It
ends when the other side closes the connection or dies, so it never outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any, BinaryIO

import retro
from retro.models import free_memory
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner
from retro.rollout.spec import Limits, PlayerParts, PlayerSpec
from retro.types import Episode

START = "from retro.rollout.worker import main; main()"
"""The program. As ``-m retro.rollout.worker`` this module would be there twice, with two classes of each message."""
ENDS_IN_SECONDS = 5.0
"""The time a worker has to end by itself once the connection is closed."""
_PACKAGE = Path(retro.__file__).parent


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker."""

    device: str
    ledger: Path | None
    processes: int
    """How many workers share the memory."""
    log_level: int
    """Of our own log lines."""

    @classmethod
    def here(cls, device: str, ledger: Path | None, processes: int) -> Setup:
        """With the log level of this process."""
        return cls(device, ledger, processes, logging.getLogger("retro").getEffectiveLevel())


@dataclass(frozen=True, slots=True)
class NewPlayer:
    """To a worker: build a player."""

    number: int
    spec: bytes
    """A pickled :class:`PlayerSpec`."""


@dataclass(frozen=True, slots=True)
class Play:
    """To a worker: play an attempt. Its :class:`Answer` has the same number."""

    number: int
    player: int
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Cancel:
    """To a worker: stop a play; nobody waits for its answer."""

    number: int


@dataclass(frozen=True, slots=True)
class Answer:
    """From a worker: the episode, or the error that was raised instead."""

    number: int
    outcome: Episode | Exception


@dataclass(frozen=True, slots=True)
class LogLine:
    """From a worker: a line for the log of the process that started it."""

    name: str
    level: int
    text: str


class Plays:
    """The players and the plays of one worker.

    Args:
        send: sends a message to the process that started this one.
    """

    def __init__(self, parts: PlayerParts, send: Callable[[Answer], None]) -> None:
        self._parts = parts
        self._send = send
        self._runners: dict[int, LocalRunner | Exception] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def handle(self, message: NewPlayer | Play | Cancel) -> None:
        """Do what a message says."""
        match message:
            case NewPlayer(number, spec):
                self._runners[number] = self._built(spec)
            case Play(number, player, attempt):
                task = asyncio.get_running_loop().create_task(self._play(number, player, attempt))
                self._tasks[number] = task
                task.add_done_callback(lambda _: self._tasks.pop(number))
            case Cancel(number) if number in self._tasks:
                self._tasks[number].cancel()

    async def close(self) -> None:
        """Stop all plays."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for runner in self._runners.values():
            if isinstance(runner, LocalRunner):
                runner.close()

    def _built(self, pickled: bytes) -> LocalRunner | Exception:
        try:
            spec: PlayerSpec = pickle.loads(pickled)
            return LocalRunner(spec.build(self._parts), spec.actor.concurrency)
        except Exception as error:  # raised by each play of this player
            return error

    async def _play(self, number: int, player: int, attempt: Attempt) -> None:
        try:
            runner = self._runners[player]
            if isinstance(runner, Exception):
                raise runner
            self._send(Answer(number, await runner.play(attempt)))
        except Exception as error:
            self._send(Answer(number, as_sent(error)))


def as_sent(error: Exception) -> Exception:
    """``error`` as the other process can raise it, with this process's traceback as a note.

    An error that is a message for the user (its class is ours, it is about a file, or a line of ours raised it) keeps
    its class. Any other becomes a ``RuntimeError``, which no command takes for such a message.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = type(error).__module__.startswith("retro.") or bool(
        frames and Path(frames[-1].filename).is_relative_to(_PACKAGE)
    )
    sent: Exception = RuntimeError(f"{type(error).__name__}: {error}")
    if ours or isinstance(error, OSError):
        with contextlib.suppress(Exception):  # a class whose instances cannot be pickled
            sent = pickle.loads(pickle.dumps(error))
    sent.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)))
    return sent


class _Log(logging.Handler):
    """Sends log lines to the process that started this one, which decides what is shown."""

    def __init__(self, send: Callable[[LogLine], None]) -> None:
        super().__init__()
        self._send_line = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send_line(LogLine(record.name, record.levelno, self.format(record)))


Send = Callable[[Answer | LogLine], None]
"""Sends a message to the process that started this one. It is called in any thread."""
Listen = Callable[[Callable[[Any], None], Callable[[], object]], None]
"""Passes each message of that process to its first argument, and calls the second one after the last message."""


async def serve(setup: Setup, send: Send, listen: Listen, limits: Limits | None = None) -> None:
    """Play until the other process has nothing more to say.

    Args:
        listen: runs in a thread, as the loop's own is busy while a model computes.
        limits: see :class:`~retro.rollout.spec.PlayerParts`.
    """
    logging.basicConfig(level=logging.WARNING, handlers=[_Log(send)], force=True)
    logging.getLogger("retro").setLevel(setup.log_level)
    free_memory.divide_among(setup.processes)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    with PlayerParts(setup.device, setup.ledger, limits) as parts:
        plays = Plays(parts, send)

        def handle(message: Any) -> None:
            loop.call_soon_threadsafe(plays.handle, message)

        Thread(target=listen, args=(handle, lambda: loop.call_soon_threadsafe(ended.set)), daemon=True).start()
        await ended.wait()
        await plays.close()


async def _serve(connection: socket.socket, stream: BinaryIO) -> None:
    """Play until the connection is closed."""
    lock = Lock()

    def send(message: Answer | LogLine) -> None:
        data = pickle.dumps(message)
        with lock, contextlib.suppress(OSError):  # the other process is gone, and so this one ends
            connection.sendall(data)

    await serve(pickle.load(stream), send, partial(_listen, stream))


def _listen(stream: BinaryIO, handle: Callable[[Any], None], end: Callable[[], object]) -> None:
    try:
        while True:
            handle(pickle.load(stream))
    except (EOFError, OSError):
        end()
        time.sleep(ENDS_IN_SECONDS)
    except Exception:
        traceback.print_exc()
    os._exit(1)


def main() -> None:
    """Play what is sent through the socket whose number is the first argument."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)  # what an environment starts must not keep the connection open
    asyncio.run(_serve(connection, connection.makefile("rb")))
