"""The last k reflections stay in the prompt (Reflexion, arXiv 2303.11366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from retro.config import MemorySection, PositiveInt
from retro.memory.base import Query
from retro.types import Recalled


class WindowOptions(MemorySection):
    kind: Literal["window"] = "window"
    size: PositiveInt = 3
    """How many of the latest reflections the actor sees (Reflexion: 3)."""


@dataclass(frozen=True, slots=True)
class ReflectionWindow:
    Options: ClassVar[type[WindowOptions]] = WindowOptions
    size: int = 3

    @classmethod
    def from_options(cls, options: WindowOptions) -> ReflectionWindow:
        return cls(options.size)

    def recall(self, query: Query) -> Recalled:
        return Recalled.latest([reflection.text for reflection in query.reflections], self.size)
