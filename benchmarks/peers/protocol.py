"""What a measured process and the benchmark say to each other: a line of JSON each way; standard library alone.

A peer's environment has neither this project nor its dependencies: its script imports this file, which lies beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter, process_time
from typing import Any


class Conversation:
    """The measured process's end. Whatever else it prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def say(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()

    def hear(self) -> dict[str, Any]:
        """The next request; waits without using a processor. Ends the process where there will be none."""
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        request: dict[str, Any] = json.loads(line)
        return request


def started() -> Callable[[], dict[str, float]]:
    """A function that says how much time went by since now."""
    wall, cpu = perf_counter(), process_time()
    return lambda: {"wall_seconds": perf_counter() - wall, "cpu_seconds": process_time() - cpu}


def resident_bytes(peak: bool = False) -> int:
    """Memory of this process in RAM, now or at its peak (Linux: ``VmRSS`` and ``VmHWM``)."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def forget_peak() -> None:
    """Begin the peak anew: what was imported is no part of it. (Where the kernel refuses, it stays in.)"""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
