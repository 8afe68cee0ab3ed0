"""What carries reflections of earlier trials into the actor's prompt: one strategy a file."""

from __future__ import annotations

from retro.config import MemorySection
from retro.memory.base import Memory
from retro.memory.window import ReflectionWindow

__all__ = ["Memory", "ReflectionWindow", "make_memory"]


def make_memory(section: MemorySection) -> Memory:
    """The memory that a config asks for."""
    match section.kind:
        case "window":
            return ReflectionWindow(section.size)
