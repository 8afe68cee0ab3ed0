"""Memories, which carry experience into the actor's prompt; each kind has its own file."""

from retro.memory.base import LearningMemory, Memory, Query
from retro.memory.window import ReflectionWindow

__all__ = ["LearningMemory", "Memory", "Query", "ReflectionWindow"]
