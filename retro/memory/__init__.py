"""What carries reflections of earlier trials into the actor's prompt: one strategy a file."""

from retro.memory.base import Memory
from retro.memory.window import ReflectionWindow

__all__ = ["Memory", "ReflectionWindow"]
