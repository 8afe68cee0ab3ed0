"""A worker process of the runner ``processes``: it builds players from their descriptions, and plays what it is sent.

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
from pathlib import Path
from threading import Lock, Thread
from typing import Any, BinaryIO

import retro
from retro.models import free_memory
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner
from retro.rollout.spec import PlayerParts, PlayerSpec
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


async def _serve(connection: socket.socket, stream: BinaryIO) -> None:
    """Play until the connection is closed."""
    setup: Setup = pickle.load(stream)
    lock = Lock()

    def send(message: Answer | LogLine) -> None:
        data = pickle.dumps(message)
        with lock, contextlib.suppress(OSError):  # the other process is gone, and so this one ends
            connection.sendall(data)

    logging.basicConfig(level=logging.WARNING, handlers=[_Log(send)])
    logging.getLogger("retro").setLevel(setup.log_level)
    free_memory.divide_among(setup.processes)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    with PlayerParts(setup.device, setup.ledger) as parts:
        plays = Plays(parts, send)
        Thread(target=_listen, args=(stream, loop, plays.handle, ended.set), daemon=True).start()
        await ended.wait()
        await plays.close()


def _listen(
    stream: BinaryIO, loop: asyncio.AbstractEventLoop, handle: Callable[[Any], None], end: Callable[[], None]
) -> None:
    """Pass messages on to the loop. It runs in a thread, as the loop's own is busy while a model computes."""
    try:
        while True:
            loop.call_soon_threadsafe(handle, pickle.load(stream))
    except (EOFError, OSError):
        loop.call_soon_threadsafe(end)
        time.sleep(ENDS_IN_SECONDS)
    except Exception:
        traceback.print_exc()
    os._exit(1)


def main() -> None:
    """Play what is sent through the socket whose number is the first argument."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)  # what an environment starts must not keep the connection open
    asyncio.run(_serve(connection, connection.makefile("rb")))
