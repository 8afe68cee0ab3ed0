"""What carries experience into the actor's prompt: one kind of memory a file."""

from retro.memory.base import Memory, Query
from retro.memory.window import ReflectionWindow

__all__ = ["Memory", "Query", "ReflectionWindow"]
