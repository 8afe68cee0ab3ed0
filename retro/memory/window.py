"""The last k reflections stay in the prompt (Reflexion, arXiv 2303.11366)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReflectionWindow:
    size: int = 3

    def recall(self, reflections: Sequence[str]) -> tuple[str, ...]:
        return tuple(reflections[-self.size :])
