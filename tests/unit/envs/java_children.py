"""The Java processes that the tests' own process has started."""

from __future__ import annotations

from contextlib import suppress

import psutil


def java_children() -> set[psutil.Process]:
    """Every running Java process among this process's children."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == "java" and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child)
    return found
