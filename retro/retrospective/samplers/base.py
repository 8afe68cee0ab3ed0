"""What samplers have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from retro.types import Reflection, ReflectionRequest

Scorer = Callable[[ReflectionRequest, Sequence[Reflection]], Awaitable[list[float]]]
"""How good each reflection on the request's episode is; higher is better. The scores need no scale."""
