"""``retro serve`` as a process of its own, which ends with the test that started it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import live_with_stdin, server_process


@contextmanager
def retro_serve(export: Path, buffer: Path, log: Path) -> Iterator[str]:
    """Serve ``export`` and record in the run folder ``buffer``; yield the server's URL.

    Raises:
        ServerFailedError: if it does not come up; with its log.
    """
    arguments = [str(export), "--buffer", str(buffer), "-n", "2"]
    with server_process("tests.servers.retro_serve", arguments, log, "/healthz") as url:
        yield url


def main() -> None:
    from retro.cli import main as retro

    live_with_stdin()
    sys.argv[1:1] = ["serve"]
    retro()


if __name__ == "__main__":
    main()
