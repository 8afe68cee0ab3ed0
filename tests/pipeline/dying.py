"""The command in a process that kills itself at a point of its own work: no clock decides when.

    python -m tests.pipeline.dying exists PATH retro-arguments …
    python -m tests.pipeline.dying episodes COUNT retro-arguments …

``exists``: at the first file that it opens, or renames, once PATH is there. ``episodes``: once it has stored so many.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from retro.buffer.store import ReplayBuffer
from retro.cli import main
from retro.evaluation.records import EpisodeRecords


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once_there(path: str) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.mkdir") and os.path.exists(path):
            die()

    sys.addaudithook(hook)


def die_after_episodes(count: int) -> None:
    stored = 0
    for store in (ReplayBuffer, EpisodeRecords):

        def add(self: Any, value: Any, add: Any = store.add) -> None:
            nonlocal stored
            add(self, value)
            stored += 1
            if stored == count:
                die()

        store.add = add  # type: ignore[method-assign]


if __name__ == "__main__":
    kind, point, *arguments = sys.argv[1:]
    if kind == "exists":
        die_once_there(point)
    else:
        die_after_episodes(int(point))
    sys.argv = ["retro", *arguments]
    main()
