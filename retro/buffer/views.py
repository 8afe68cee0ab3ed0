"""What each stage reads from the buffer: rated reflections to imitate or to judge by, and contexts to reflect on.

All are split by task, filtered by environment, and deterministic in content and order. They leave out episodes without
a trajectory, since there is nothing to reflect on (some logs have only outcomes). They read the buffer while they are
iterated, one task at a time: a buffer may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from retro.buffer.engine import ReplayBufferError
from retro.buffer.store import Group, ReplayBuffer
from retro.config import Rating
from retro.ratings import delta_return, group_normalised, over_control
from retro.ties import exceeds
from retro.types import Episode, Reflection, Split

Splits = Sequence[Split | str]


@dataclass(frozen=True, slots=True)
class Context:
    """A failed episode: what a retrospective model is asked about."""

    episode: Episode
    path: tuple[Reflection, ...] = ()
    """The reflections that led to it, its own included, oldest first; a retry of it builds on these."""


@dataclass(frozen=True, slots=True)
class RatedReflection:
    """One reflection on a context, and its rating."""

    context: Context
    reflection: Reflection
    rating: float


def rate(group: Group, scheme: Rating) -> list[float]:
    """The ratings of ``group.retries``, in their order, by the named scheme of :mod:`retro.ratings`.

    Ratings are computed when they are asked for; they are never stored.
    """
    returns, parent = [retry.return_ for retry in group.retries], group.parent.return_
    match scheme:
        case "delta_return":
            return delta_return(returns, parent)
        case "over_control":
            return over_control(returns, [control.return_ for control in group.controls], parent)
        case "group":
            return group_normalised(returns)


def has_trajectory(episode: Episode) -> bool:
    return bool(episode.trajectory.opening or episode.trajectory.steps)


def rated_reflections(
    buffer: ReplayBuffer, scheme: Rating, splits: Splits = (), environments: Sequence[str] = ()
) -> Iterator[RatedReflection]:
    """Every reflection on a trajectory that was retried."""
    for group in buffer.groups(environments, splits):
        if has_trajectory(group.parent):
            context = Context(group.parent)
            for retry, rating in zip(group.retries, rate(group, scheme), strict=True):
                if retry.reflection is not None:
                    yield RatedReflection(context, retry.reflection, rating)


def sft_examples(
    buffer: ReplayBuffer,
    scheme: Rating,
    threshold: float,
    splits: Splits = (Split.TRAIN,),
    environments: Sequence[str] = (),
) -> Iterator[RatedReflection]:
    """The reflections rated above ``threshold``: what supervised fine-tuning imitates."""
    for item in rated_reflections(buffer, scheme, splits, environments):
        if exceeds(item.rating, threshold):
            yield item


def contexts(
    buffer: ReplayBuffer,
    splits: Splits = (Split.TRAIN,),
    environments: Sequence[str] = (),
) -> Iterator[Context]:
    """Every failed episode with a trajectory, retried or not."""
    for episode, path in buffer.failures(environments, splits):
        if has_trajectory(episode):
            yield Context(episode, path)


class StoredContexts(Sequence[Context]):
    """Contexts of a buffer, of which only the ids are in memory: each is read when it is asked for.

    Args:
        buffer: Holds the episodes; it stays open as long as contexts are read.
        chosen: The contexts, in their order.
    """

    def __init__(self, buffer: ReplayBuffer, chosen: Iterable[Context]) -> None:
        self._buffer = buffer
        self._ids: list[str] = []
        environments = set()
        for context in chosen:
            self._ids.append(context.episode.id)
            environments.add(context.episode.task.environment)
        self.environments = frozenset(environments)
        """Of their episodes."""

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Context: ...

    @overload
    def __getitem__(self, index: slice) -> list[Context]: ...

    def __getitem__(self, index: int | slice) -> Context | list[Context]:
        if isinstance(index, slice):
            return [self._read(id) for id in self._ids[index]]
        return self._read(self._ids[index])

    def _read(self, id: str) -> Context:
        episode = self._buffer.get(id)
        if episode is None:
            raise ReplayBufferError(f"replay buffer {self._buffer}: episode {id!r} was deleted while it was needed")
        return Context(episode, self._buffer.path(episode))
