"""What each stage reads from the buffer: rated reflections to imitate or to judge by, and contexts to reflect on.

All are split by task, filtered by environment, and deterministic in content and order. They leave out episodes without
a trajectory, since there is nothing to reflect on (some logs have only outcomes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
) -> list[RatedReflection]:
    """Every reflection on a trajectory that was retried."""
    return [
        RatedReflection(Context(group.parent), retry.reflection, rating)
        for group in buffer.groups(environments, splits)
        if has_trajectory(group.parent)
        for retry, rating in zip(group.retries, rate(group, scheme), strict=True)
        if retry.reflection is not None
    ]


def sft_examples(
    buffer: ReplayBuffer,
    scheme: Rating,
    threshold: float,
    splits: Splits = (Split.TRAIN,),
    environments: Sequence[str] = (),
) -> list[RatedReflection]:
    """The reflections rated above ``threshold``: what supervised fine-tuning imitates."""
    rated = rated_reflections(buffer, scheme, splits, environments)
    return [item for item in rated if exceeds(item.rating, threshold)]


def contexts(
    buffer: ReplayBuffer,
    splits: Splits = (Split.TRAIN,),
    environments: Sequence[str] = (),
) -> list[Context]:
    """Every failed episode with a trajectory, retried or not."""
    failures = buffer.failures(environments, splits)
    return [Context(episode, path) for episode, path in failures if has_trajectory(episode)]
