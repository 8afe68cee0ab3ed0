"""Memories, which carry experience into the actor's prompt; each kind has its own file."""

from retro.memory.base import LearningMemory, ListedEntry, ListingMemory, Memory, Query
from retro.memory.window import ReflectionWindow

__all__ = ["LearningMemory", "ListedEntry", "ListingMemory", "Memory", "Query", "ReflectionWindow"]
