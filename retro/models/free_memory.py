"""How much memory is free: of a device, or of the machine within the limits that its container sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""The limit and the usage of a container, relative to its mount: of version 2, and of version 1."""

_processes = 1


def divide_among(processes: int) -> None:
    """This process is one of several that share the memory equally: from now on, a part of it counts as free here."""
    global _processes  # noqa: PLW0603 - a fact about this process
    _processes = processes


def free_bytes(device: torch.device) -> int:
    """The bytes that can be allocated now, or this process's share of them (:func:`divide_among`).

    On a GPU: what its driver reports as free. Elsewhere: what the kernel reports as available without swapping, or what
    is left of the container's limit, whichever is less; half of the machine's memory if neither is known."""
    return _free_bytes(device) // _processes


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min([_available(), *_left_in_container(Path("/sys/fs/cgroup"))])


def _available() -> int:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_in_container(root: Path) -> list[int]:
    found = []
    for limit, usage in _CGROUPS:
        try:
            found.append(int((root / limit).read_text()) - int((root / usage).read_text()))
        except (OSError, ValueError):  # none of this version, or "max"
            continue
    return found
