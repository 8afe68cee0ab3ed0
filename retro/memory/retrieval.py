"""Lessons of similar tasks, weighted by their utility (RetroAgent, arXiv 2603.08561)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

from retro.config import Fraction, NonNegativeFloat, PositiveInt, Recall
from retro.memory.entries import BankOptions, Entry, EntryBank, entry_id, of_several, shortened, source
from retro.types import Episode


class RetrievalOptions(BankOptions):
    kind: Literal["retrieval"] = "retrieval"
    lessons: Annotated[PositiveInt, Recall] = 3
    """How many lessons the actor sees, the best last."""
    similarity: Annotated[Fraction, Recall] = 0.5
    """α: the weight of similarity against utility."""
    min_similarity: Annotated[Fraction, Recall] = 0.4
    """The least cosine between the openings of the lesson's task and of the one that is played."""
    exploration: Annotated[NonNegativeFloat, Recall] = 1.0
    """κ: the weight of the bonus of lessons that were tried rarely. 0 shows the lessons that did best so far."""
    step: Fraction = 0.05
    """β: how far one more outcome moves the utility of a lesson towards it."""


@dataclass(frozen=True, kw_only=True)
class Lesson(Entry):
    """A reflection with the outcomes of the retries that it led to."""

    text: str
    utility: Fraction
    """The exponential mean of the outcomes, which starts at the first one."""
    tries: PositiveInt


@dataclass(frozen=True)
class UtilityRetrieval(EntryBank[Lesson]):
    """Keeps reflections, also those that failed, and shows those with the highest score,

        α·cos + (1 − α)·(u + κ·√(ln N / n)),

    where cos compares the openings of the tasks, u is the lesson's utility, n the number of its retries and N that of
    all retries in the bank. The outcome of a retry is its return. Equal reflections are one lesson. When the bank is
    full, the lesson of the lowest utility goes.
    """

    Options: ClassVar[type[RetrievalOptions]] = RetrievalOptions
    entry_class = Lesson
    options: RetrievalOptions

    def fold(self, episode: Episode) -> Self:
        text = "" if episode.reflection is None else shortened(episode.reflection.text, self.options.max_tokens)
        if not text or episode.broken:
            return self
        id = entry_id(episode.task.environment, text)
        outcome = min(1.0, max(0.0, episode.return_))
        known = self.entries.get(id)
        if known is None:
            return self.having(Lesson(id=id, **source(episode), text=text, utility=outcome, tries=1))
        utility = known.utility + self.options.step * (outcome - known.utility)
        return self.having(of_several(known, episode, utility=utility, tries=known.tries + 1))

    def choose(self, near: Sequence[tuple[float, Lesson]], opening: str) -> Sequence[Lesson]:
        similar = [pair for pair in near if pair[0] >= self.options.min_similarity]
        ordered = sorted(similar, key=lambda pair: (-self._score(*pair), pair[1].id))[: self.options.lessons]
        return [entry for _, entry in reversed(ordered)]

    def shown(self, entry: Lesson) -> tuple[str, str]:
        return entry.id, entry.text

    def value(self, entry: Lesson) -> tuple[float, ...]:
        return (entry.utility,)

    def _score(self, similarity: float, lesson: Lesson) -> float:
        bonus = self.options.exploration * math.sqrt(math.log(self._retries) / lesson.tries)
        weight = self.options.similarity
        return weight * similarity + (1 - weight) * (lesson.utility + bonus)

    @cached_property
    def _retries(self) -> int:
        return sum(lesson.tries for lesson in self.entries.values())
