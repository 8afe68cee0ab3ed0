"""A memory of one's own that learns across tasks: reflections that led to a success are shown on other tasks, too.

    memory:
      kind: examples.extensions.lessons:Lessons
      options: {lessons: 3, window: 3}

What such a memory has learnt is its bank. The stage `memory` folds the finished train episodes into it after the
collection, in a fixed order, and saves it in the run folder; whatever plays afterwards loads it. A bank never changes
while tasks are played: `fold` returns a new memory. Its `digest` names its content, so stages know when it is another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from retro.config import NonNegativeInt, PositiveInt, Section
from retro.memory import Query
from retro.types import Episode, Recalled


@dataclass(frozen=True)
class Lessons:
    class Options(Section):
        lessons: PositiveInt = 3
        """Lessons from other tasks, the shortest ones."""
        window: NonNegativeInt = 3
        """Latest reflections on the task itself."""

    options: Options
    bank: tuple[tuple[str, str, str], ...] = ()
    """(episode id, task id, reflection)"""

    @classmethod
    def from_options(cls, options: Options) -> Self:
        return cls(options)

    def recall(self, query: Query) -> Recalled:
        others = sorted((len(text), id, text) for id, task, text in self.bank if task != query.task.id)
        shown = [(f"From another task: {text}", id) for _, id, text in others[: self.options.lessons]]
        own = Recalled.latest([reflection.text for reflection in query.reflections], self.options.window)
        return Recalled((*(text for text, _ in shown), *own.entries), (*(id for _, id in shown), *own.ids))

    def fold(self, episode: Episode) -> Self:
        if episode.reflection is None or not episode.success:
            return self
        return replace(self, bank=(*self.bank, (episode.id, episode.task.id, episode.reflection.text)))

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.bank).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        (folder / "lessons.json").write_text(json.dumps(self.bank), encoding="utf-8")

    def load(self, folder: Path) -> Self:
        return replace(self, bank=tuple(map(tuple, json.loads((folder / "lessons.json").read_text(encoding="utf-8")))))
