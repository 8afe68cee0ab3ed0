"""A memory that learns across tasks, for tests: it tells every actor how the latest episodes began."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from retro.artifacts import write_json
from retro.buffer.schema import content_digest
from retro.config import PositiveInt, Section
from retro.memory import Query
from retro.reading import read_json
from retro.types import Episode, Recalled


class Options(Section):
    size: PositiveInt = 2


@dataclass(frozen=True)
class Beginnings:
    Options: ClassVar[type[Options]] = Options
    size: int
    bank: tuple[tuple[str, str], ...] = ()
    """(episode id, first action), in the order of learning."""

    @classmethod
    def from_options(cls, options: Options) -> Beginnings:
        return cls(options.size)

    def recall(self, query: Query) -> Recalled:
        latest = self.bank[-self.size :]
        own = Recalled.latest([reflection.text for reflection in query.reflections], 1)
        return Recalled((*(text for _, text in latest), *own.entries), (*(id for id, _ in latest), *own.ids))

    @property
    def digest(self) -> str:
        return content_digest(list(map(list, self.bank)))

    def fold(self, episode: Episode) -> Self:
        steps = episode.trajectory.steps
        return replace(self, bank=(*self.bank, (episode.id, f"Once: {steps[0].action}"))) if steps else self

    def save(self, folder: Path) -> None:
        write_json(folder / "beginnings.json", {"bank": json.loads(json.dumps(self.bank))})

    def load(self, folder: Path) -> Self:
        return replace(self, bank=tuple(map(tuple, read_json(folder / "beginnings.json")["bank"])))
