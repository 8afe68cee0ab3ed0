"""What carries experience into the actor's prompt: one kind of memory a file."""

from retro.memory.base import LearningMemory, Memory, Query
from retro.memory.window import ReflectionWindow

__all__ = ["LearningMemory", "Memory", "Query", "ReflectionWindow"]
