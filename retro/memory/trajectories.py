"""The nearest successful trajectory of another task, verbatim: the baseline of every other bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from retro.config import PositiveInt, Recall
from retro.memory.entries import BankOptions, Entry, EntryBank, entry_id, source, tokens
from retro.reading import encodable
from retro.types import Episode, Trajectory


class TrajectoriesOptions(BankOptions):
    kind: Literal["trajectories"] = "trajectories"
    max_tokens: PositiveInt = 1024
    """The longest trajectory, in tokens of four bytes; longer ones are not learnt."""
    count: Annotated[PositiveInt, Recall] = 1
    """How many trajectories the actor sees, the nearest last."""


@dataclass(frozen=True, kw_only=True)
class Solved(Entry):
    """The best successful play of a task."""

    return_: float
    steps: int
    episode: str
    text: str


@dataclass(frozen=True)
class NearestTrajectories(EntryBank[Solved]):
    """Keeps one successful trajectory of each task, and shows those of the tasks with the most similar openings.

    When the bank is full, a random choice of the tasks stays, by a hash of their names.
    """

    Options: ClassVar[type[TrajectoriesOptions]] = TrajectoriesOptions
    entry_class = Solved
    options: TrajectoriesOptions

    def fold(self, episode: Episode) -> Self:
        text = encodable(verbatim(episode.trajectory))
        if not episode.success or not episode.trajectory.steps or tokens(text) > self.options.max_tokens:
            return self
        solved = Solved(
            id=entry_id(episode.task.environment, episode.task.id),
            **source(episode),
            return_=episode.return_,
            steps=len(episode.trajectory.steps),
            episode=episode.id,
            text=text,
        )
        known = self.entries.get(solved.id)
        return self if known is not None and _rank(known) <= _rank(solved) else self.having(solved)

    def choose(self, near: Sequence[tuple[float, Solved]], opening: str) -> Sequence[Solved]:
        ordered = sorted(near, key=lambda pair: (-pair[0], pair[1].id))[: self.options.count]
        return [entry for _, entry in reversed(ordered)]

    def shown(self, entry: Solved) -> tuple[str, str]:
        return entry.episode, f"Another task that was solved:\n{entry.text}"

    def value(self, entry: Solved) -> tuple[float, ...]:
        return ()


def verbatim(trajectory: Trajectory) -> str:
    """A trajectory as text: the opening, then each step's thought, its action after ``>``, and the observation."""
    lines = [trajectory.opening]
    for step in trajectory.steps:
        lines += [*([step.thought] if step.thought else []), f"> {step.action}", step.observation]
    return "\n".join(lines)


def _rank(solved: Solved) -> tuple[float, int, str]:
    """Sorts the better play first: the higher return, then fewer steps."""
    return -solved.return_, solved.steps, solved.episode
