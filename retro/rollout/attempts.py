"""Plans of attempts as data. The id of an attempt is known before it is played, so it counts once wherever it runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from retro.config import ActorSection, Branch, CollectSection
from retro.types import Episode, Reflection, Step, Task, derive_seed

Key = tuple[str | int, ...]
"""The purpose of attempts, for example (run seed, "collect"). Other keys give other ids and other random draws."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One play of a task that may or may not have been played yet."""

    key: Key
    task: Task
    trial: int = 0
    parent: str | None = None
    """The id of the failed episode that this one retries."""
    path: tuple[Reflection, ...] = ()
    """All reflections that led to this trial, oldest first. The last one preceded it, unless it is a ``control``."""
    index: int = 0
    """Its index among the retries (or among the controls) of ``parent``."""
    control: bool = False
    """A retry without a reflection of its own."""
    kept: tuple[Step, ...] = ()
    """The first steps of ``parent``, which are played again as they were; the actor goes on from there. They are not
    part of the id: what decides them belongs to ``key``."""
    advice: int = 0
    """How often its actor may ask for advice (:mod:`retro.rollout.advice`). Not part of the id, as ``kept``."""
    paused: Episode | None = None
    """What was played of it before the actor got its latest advice: the steps are played again as they were, and the
    actor goes on from there."""

    @classmethod
    def retry(
        cls,
        key: Key,
        failed: Episode,
        path: tuple[Reflection, ...],
        reflection: Reflection | None,
        index: int = 0,
        branch: Branch = "start",
    ) -> Attempt:
        """Play the task of ``failed`` once more, with one more reflection or, as a control, without.

        Args:
            path: The reflections that led to ``failed``, its own included, oldest first.
            reflection: The reflection on ``failed``.
            index: The index in the group of retries (or of controls).
            branch: Where it begins.
        """
        whole = path if reflection is None else (*path, reflection)
        kept = steps_kept(failed, branch)
        return cls(key, failed.task, failed.trial + 1, failed.id, whole, index, reflection is None, kept)

    @property
    def id(self) -> str:
        """The id of its episode: 32 hex digits, which do not depend on the texts of reflections."""
        task = self.task
        name = json.dumps([self.key, task.environment, task.id, self.trial, self.parent, self.index, self.control])
        return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()

    @property
    def reflection(self) -> Reflection | None:
        """The reflection that preceded it."""
        return self.path[-1] if self.path and not self.control else None

    def seed(self, *further: int) -> int:
        """The seed of the whole episode, or of the step ``further``."""
        return derive_seed(*self.key, self.task.id, self.trial, self.parent or "", self.index, *further)


@dataclass(frozen=True, slots=True)
class Plan:
    """How each task is played."""

    key: Key
    attempts: int
    """Trials 0 … ``attempts`` − 1, as long as they fail."""
    group: int = 1
    """Reflections on each failed episode, each with its own retry."""
    controls: int = 0
    """Retries without a reflection beside each group."""
    branch: Branch = "start"
    """Where retries begin."""
    advice: int = 0
    """How often an actor may ask for advice within one episode (:mod:`retro.rollout.advice`)."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.group < 1 or self.controls < 0 or self.advice < 0:
            raise ValueError(
                f"attempts ({self.attempts}) and group ({self.group}) must be ≥ 1, controls ({self.controls}) and "
                f"advice ({self.advice}) ≥ 0"
            )

    @property
    def most(self) -> int:
        """The most episodes that a task can have."""
        return 1 + (self.attempts - 1) * (self.group + self.controls)

    @classmethod
    def of(cls, key: Key, section: CollectSection, actor: ActorSection) -> Plan:
        """The plan of a collection. An actor at temperature 0 has no controls: they would repeat the failed episode."""
        controls = section.controls if actor.temperature else 0
        return cls(key, section.attempts, section.group, controls, section.branch, section.advice)


def steps_kept(failed: Episode, branch: Branch) -> tuple[Step, ...]:
    """The steps of a failed episode that its retries keep.

    With ``last_reward`` these are the steps up to the last one that earned a reward: nothing after it helped. A retry
    then shares its return so far with the failed episode, so its rating is that of the continuation alone. Nothing is
    kept where no step earned a reward, or where the last one did, since no step would be left.
    """
    steps = failed.trajectory.steps
    rewarded = [count for count, step in enumerate(steps, 1) if step.reward > 0]
    if branch == "start" or not rewarded or rewarded[-1] == len(steps):
        return ()
    return steps[: rewarded[-1]]


class Journal(Protocol):
    """The episodes that have been played: the replay buffer, the records of an evaluation, a dictionary."""

    def get(self, id: str, /) -> Episode | None:
        """The episode with an id, if it was played before."""
        ...

    def add(self, episode: Episode, /) -> None:
        """Keep an episode as soon as it has been played."""
        ...


class Episodes(dict[str, Episode]):
    """A journal in memory: id → episode."""

    def add(self, episode: Episode, /) -> None:
        self[episode.id] = episode
