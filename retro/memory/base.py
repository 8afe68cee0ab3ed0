"""What carries reflections of earlier trials into the actor's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Memory(Protocol):
    """A strategy: which of the reflections so far the actor sees, and in what words."""

    def recall(self, reflections: Sequence[str]) -> tuple[str, ...]:
        """The entries of the actor's prompt, from the reflections on the way to this trial; both oldest first."""
        ...
