"""What the reward model learns from: groups of rated reflections on one failed episode, behind their shared prompt."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean

from retro.buffer.store import ReplayBuffer
from retro.buffer.views import RatedReflection, rated_reflections
from retro.config import RewardSection
from retro.retrospective.encoding import Encoder
from retro.stage import NothingToLearnError
from retro.ties import exceeds
from retro.training.examples import without_too_long
from retro.training.reward_metrics import unequal_pairs
from retro.types import Split, derive_seed


@dataclass(frozen=True, slots=True)
class RewardGroup:
    """The different reflections on one failed episode."""

    task: str
    """``environment/id``; splits and intervals are by task."""
    environment: str
    prompt: Sequence[int]
    """Tokens, as those of the responses: in arrays, since a list of so many integers takes nine times as much."""
    responses: Sequence[Sequence[int]]
    ratings: tuple[float, ...]
    used: tuple[bool, ...]
    """For ``bce`` training only: False if down-sampling left the reflection out."""

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


def read_groups(
    buffer: ReplayBuffer, section: RewardSection, encoder: Encoder, split: Split, environments: Sequence[str]
) -> list[RewardGroup]:
    """The groups of a split's tasks, in the buffer's order.

    Equal texts of one group become one reflection with the mean of their ratings, since they get one score.
    """
    rated = rated_reflections(buffer, section.rating, (split,), environments)
    fitting = without_too_long(rated, encoder, f"reflections on {split} tasks")
    groups = []
    for _, of_parent in groupby(fitting, key=lambda item: item.context.episode.id):
        by_text: dict[str, list[RatedReflection]] = {}
        for item in of_parent:
            by_text.setdefault(item.reflection.text, []).append(item)
        firsts = [same[0] for same in by_text.values()]
        episode = firsts[0].context.episode
        groups.append(
            RewardGroup(
                task=f"{episode.task.environment}/{episode.task.id}",
                environment=episode.task.environment,
                prompt=array("i", encoder.prompt(episode)),
                responses=[array("i", encoder.response(item.reflection)) for item in firsts],
                ratings=tuple(fmean(item.rating for item in same) for same in by_text.values()),
                used=(True,) * len(by_text),
            )
        )
    return groups


def to_learn_from(groups: list[RewardGroup], section: RewardSection, seed: int) -> list[RewardGroup]:
    """The groups with a pair, or with a (balanced) label.

    Raises:
        NothingToLearnError: if there are none.
    """
    reflections = sum(len(group.responses) for group in groups)
    if section.loss == "bradley_terry":
        pairs = [group for group in groups if unequal_pairs(group.ratings, section.threshold)]
        if not pairs:
            raise NothingToLearnError(
                f"no two of the {reflections} reflections on training tasks belong to one group and differ by more "
                f"than reward.threshold = {section.threshold} in {section.rating}: collect groups (collect.group ≥ 2) "
                "of more tasks, or train the classifier (reward.loss=bce), which needs one reflection a trajectory"
            )
        return pairs
    accepted = sum(exceeds(rating, section.threshold) for group in groups for rating in group.ratings)
    if accepted in (0, reflections):
        raise NothingToLearnError(
            f"{accepted} of the {reflections} reflections on training tasks are rated above reward.threshold = "
            f"{section.threshold} by {section.rating}: a classifier needs both kinds; collect more tasks or change the "
            "threshold"
        )
    return _balanced(groups, section.threshold, seed) if section.balance else groups


def _balanced(groups: list[RewardGroup], threshold: float, seed: int) -> list[RewardGroup]:
    """Down-sample the more frequent label to the other's number, as the paper's code does."""
    indices = [(g, i) for g, group in enumerate(groups) for i in range(len(group.responses))]
    accepted = [(g, i) for g, i in indices if exceeds(groups[g].ratings[i], threshold)]
    rejected = [(g, i) for g, i in indices if not exceeds(groups[g].ratings[i], threshold)]
    fewer, more = sorted((accepted, rejected), key=len)
    kept = {*fewer, *random.Random(derive_seed(seed, "reward", "balance")).sample(more, len(fewer))}
    chosen = [
        replace(group, used=tuple((g, i) in kept for i in range(len(group.responses))))
        for g, group in enumerate(groups)
    ]
    return [group for group in chosen if any(group.used)]
