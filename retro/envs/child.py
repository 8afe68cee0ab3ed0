"""A process that an environment starts, and to which it writes lines of JSON."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

from retro.envs.base import EnvironmentFailedError

ENDS_IN_SECONDS = 5.0
"""The time a process has to end by itself before it is killed."""
_MAX_LAST_WORDS = 300


class Child:
    """A process that ends when its standard input ends.

    Args:
        environment: The name for messages.
        command: The program and its arguments.
        variables: Its whole environment.

    Raises:
        EnvironmentFailedError: if it cannot be started.
    """

    def __init__(self, environment: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self._ending = threading.Lock()
        self._end = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=dict(variables),
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise EnvironmentFailedError(f"{environment}: no worker process can be started: {error}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> IO[str]:
        """What it writes to its standard output."""
        assert self._process.stdout is not None
        return self._process.stdout

    def send(self, request: Mapping[str, Any]) -> None:
        """Write a line.

        Raises:
            OSError, ValueError: if the process has ended, or its input is closed.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def close_input(self) -> None:
        """Have the process end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died before it read the last request
            self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()

    def ended(self) -> str:
        """Wait for the end of the process; return how it ended."""
        with self._ending:
            if not self._end:
                try:
                    code = self._process.wait(ENDS_IN_SECONDS)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    code = self._process.wait()
                self._errors.seek(0)
                lines = self._errors.read().decode(errors="replace").split("\n")
                self._errors.close()
                said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
                self._end = f"a worker process {how}; its last words: {said[:_MAX_LAST_WORDS]}"
            return self._end
