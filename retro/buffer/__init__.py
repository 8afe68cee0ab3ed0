"""The replay buffer: a tree of episodes and reflections, its ratings, and what each stage reads of it."""

from retro.buffer.engine import ReplayBufferError
from retro.buffer.store import Group, ReplayBuffer
from retro.buffer.views import rate

__all__ = ["Group", "ReplayBuffer", "ReplayBufferError", "rate"]
