"""A server in a process of its own: started on a free port, waited for, stopped however its user ends.

A server lives as long as its standard input (:func:`live_with_stdin`), which the system closes with the process that
started it: also a killed test leaves nothing behind.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 900.0
"""Before a process counts as hung: many times what it takes on a busy machine, as no test is to depend on time."""
_LOG_CHARS = 4000


class ServerFailedError(RuntimeError):
    """A server that did not come up: the message ends with its log."""


@contextmanager
def server_process(
    module: str,
    arguments: Sequence[str],
    log: Path,
    health: str,
    seconds: float = PATIENCE_SECONDS,
    python: str | Path = sys.executable,
) -> Iterator[str]:
    """Run ``python -m module --port N arguments…``; yield ``http://127.0.0.1:N`` once GET ``health`` answers 200.

    Args:
        python: an interpreter, or what stands in for one (``tests.pipeline.forks``).

    Raises:
        ServerFailedError: if it ends or stays silent for ``seconds``; with the end of ``log``.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [python, "-m", module, "--port", str(port), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until_healthy(process, url + health, log, seconds)
        yield url
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def live_with_stdin() -> None:
    """End this process once its standard input is closed: for the main function of a server."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> bytes:
    """The body of a GET; proxies of the surroundings do not count, the server is here.

    Raises:
        urllib.error.URLError: if there is no answer, or none of status 200.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return bytes(answer.read())


def wait_until_healthy(
    process: subprocess.Popen[bytes], url: str, log: Path, seconds: float = PATIENCE_SECONDS
) -> None:
    """Return once GET ``url`` answers 200.

    Raises:
        ServerFailedError: if the process ends or stays silent for ``seconds``; with the end of ``log``.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            get(url)
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            ended = process.poll()
            if ended is None and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            state = f"has not answered {url} within {seconds:.0f} s ({error})" if ended is None else f"ended by {ended}"
            said = log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARS:]
            raise ServerFailedError(f"{process.args!r} {state}; its log:\n{said}") from None
