"""A lease: one process at a time works on a run; a second one is refused with a line that names the first."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import signal
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any, Protocol

from retro.reading import UnreadableError, parse_json

logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
"""How often a holder shows that it lives."""
EXPIRES_SECONDS = 90.0
"""How long after the last sign of life a lease ends, where only its age tells whether the holder lives. The clocks of
the machines must agree much better than this."""
_LONGEST = 4096
"""Bytes of the file that are read."""


class LeaseHeldError(ValueError):
    """Another process has the lease; the message names it, and the remedy."""


class LeaseLostError(ValueError):
    """Another process has taken the lease over, or its file was deleted."""


class Lease(Protocol):
    """What :func:`kept` keeps."""

    def beat(self) -> None:
        """Show a sign of life. Raises LeaseLostError."""
        ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that has a lease, for a message."""

    process: str
    since: float | None
    """Seconds since 1970; None where that is not known."""
    silent: float | None
    """Seconds since its last sign of life."""

    def __str__(self) -> str:
        facts = []
        if self.since is not None:
            facts.append(f"since {datetime.fromtimestamp(self.since, UTC):%Y-%m-%d %H:%M:%S} UTC")
        if self.silent is not None:
            facts.append(f"last sign of life {max(self.silent, 0):.0f} s ago")
        return f"{self.process} ({', '.join(facts)})" if facts else self.process


@contextmanager
def kept(lease: Lease, seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Show signs of life while the block runs, and release the lease after it.

    Raises:
        LeaseLostError: if the lease is lost meanwhile: the block is interrupted, as by Ctrl-C, or fails at its end if
            this process ignores that signal.
    """
    ended = Event()
    lost: list[LeaseLostError] = []

    def beat() -> None:
        while not ended.wait(seconds):
            try:
                lease.beat()
            except LeaseLostError as error:
                if not ended.is_set():
                    lost.append(error)
                    interrupt_main()
                return

    thread = Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        with _interruptible():
            yield
        if lost:
            raise lost[0]
    except KeyboardInterrupt:
        if lost:
            raise lost[0] from None
        raise
    finally:
        ended.set()
        thread.join(timeout=seconds)
        lease.release()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a lost lease interrupt the main thread also where a shell started the command with SIGINT ignored (``&`` in a
    script)."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class FileLease:
    """A lease in a file, which exists while somebody has the lease. It is locked by the operating system, and says who
    has it; its modification time is the last sign of life.

    The lock ends with its process, so on one machine a killed holder blocks nobody. Another machine may not see the
    lock: there the lease ends :data:`EXPIRES_SECONDS` after the last sign of life. The same holds on a file system
    without locks.

    Args:
        what: What is leased, for messages.
        clock: Seconds since 1970.
        machine: Identifies a running system, whose processes all see one another's locks.

    Raises:
        LeaseHeldError: if another process has the lease.
    """

    def __init__(
        self, path: Path, what: str, clock: Callable[[], float] = time.time, machine: str | None = None
    ) -> None:
        self._path, self._what, self._clock = path, what, clock
        machine = _machine() if machine is None else machine
        self._descriptor, locked = self._opened()
        content = self._content()
        holder = self._holder(content)
        ended = locked and content.get("machine") == machine  # a holder on this machine would have the lock
        if not ended and holder is not None and holder.silent is not None and holder.silent < EXPIRES_SECONDS:
            os.close(self._descriptor)
            raise self._refused(holder, f"if it was killed, its lease ends {EXPIRES_SECONDS:.0f} s after that sign")
        if holder is not None:
            logger.warning("%s: %s ended without releasing it; this process takes it over", what, holder)
        self._own = {"host": platform.node(), "pid": os.getpid(), "since": clock(), "machine": machine}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(self._own).encode(), 0)
        self._touch()

    def beat(self) -> None:
        """Show a sign of life. An error of the file system is only logged.

        Raises:
            LeaseLostError: if the file is gone, or another process has taken the lease over.
        """
        try:
            if not self._is_ours():
                holder = self._holder(self._content())
                by = f"taken over by {holder}" if holder is not None else "deleted"
                raise LeaseLostError(f"{self._what}: {self._path} was {by}: this process stops")
            self._touch()
        except OSError as error:
            logger.warning("%s: %s: no sign of life could be written: %s", self._what, self._path, error)

    def release(self) -> None:
        """Delete the file, unless the lease was lost."""
        with contextlib.suppress(OSError):
            if self._is_ours():
                self._path.unlink()
        os.close(self._descriptor)

    def _opened(self) -> tuple[int, bool]:
        """The descriptor of the file, and whether it is locked: not on a file system without locks."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._descriptor = descriptor
                holder = self._holder(self._content())
                os.close(descriptor)
                raise self._refused(holder) from None
            except OSError:
                return descriptor, False
            if self._is_at_path(descriptor):
                return descriptor, True
            os.close(descriptor)  # its holder deleted the file after it was opened here

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _is_ours(self) -> bool:
        return self._is_at_path(self._descriptor) and self._content() == self._own

    def _touch(self) -> None:
        now = self._clock()
        os.utime(self._descriptor, (now, now))

    def _content(self) -> dict[str, Any]:
        """What the file says; empty if it is new, or was damaged."""
        try:
            tree = parse_json(os.pread(self._descriptor, _LONGEST, 0))
        except UnreadableError:
            return {}
        return tree if isinstance(tree, dict) else {}

    def _holder(self, content: dict[str, Any]) -> Holder | None:
        if not content:
            return None
        since = content.get("since")
        return Holder(
            f"process {content.get('pid')} on {content.get('host')}",
            float(since) if isinstance(since, (int, float)) else None,
            self._clock() - os.fstat(self._descriptor).st_mtime,
        )

    def _refused(self, holder: Holder | None, more: str = "") -> LeaseHeldError:
        return refused(self._what, holder, "name=…", more)


def at_work(path: Path) -> bool:
    """Whether a process has the lease of this file, as far as this machine can tell. Nothing is written."""
    try:
        with path.open("rb") as file:
            age = time.time() - os.fstat(file.fileno()).st_mtime
            content = parse_json(file.read(_LONGEST))
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, UnreadableError):
        return False
    here = isinstance(content, dict) and content.get("machine") == _machine()
    return not here and age < EXPIRES_SECONDS


def refused(what: str, holder: Holder | None, other: str, more: str = "") -> LeaseHeldError:
    """The error for ``what`` that somebody else has; ``other`` are the keys that give a run another place."""
    rest = f" ({more})" if more else ""
    return LeaseHeldError(
        f"{what}: {holder or 'another process'} works on it: wait until that has ended, or stop it{rest}; or give this "
        f"run another name: {other}"
    )


def _machine() -> str:
    """The identity of the running kernel, which containers share; elsewhere than on Linux, the name of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()
