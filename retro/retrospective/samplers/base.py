"""The type that samplers share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from retro.types import Reflection, ReflectionRequest

Scorer = Callable[[ReflectionRequest, Sequence[Reflection]], Awaitable[list[float]]]
"""Scores each reflection on the request's episode; higher is better. The scores need no scale."""
