"""What the reward model learns from: the rated reflections on one failed episode, behind their shared prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from retro.buffer.store import ReplayBuffer
from retro.buffer.views import rated_reflections
from retro.config import RewardSection
from retro.retrospective.encoding import Encoder
from retro.stage import NothingToLearnError
from retro.ties import exceeds
from retro.training.examples import without_too_long
from retro.training.reward_metrics import unequal_pairs
from retro.types import Reflection, Split, derive_seed


@dataclass(frozen=True, slots=True)
class RewardGroup:
    """One failed episode's different reflections."""

    task: str
    """Environment and id: what splits and intervals go by."""
    environment: str
    prompt: list[int]
    responses: list[list[int]]
    ratings: tuple[float, ...]
    used: tuple[bool, ...]
    """``bce`` training only: False where down-sampling left the reflection out."""

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


def read_groups(
    buffer: ReplayBuffer, section: RewardSection, encoder: Encoder, split: Split, environments: Sequence[str]
) -> list[RewardGroup]:
    """The groups of a split's tasks, in the buffer's order.

    Equal texts of one group become one reflection with the mean of their ratings: a score cannot tell them apart.
    """
    by_parent: dict[str, list[tuple[Reflection, float]]] = {}
    contexts = {}
    rated_ones = rated_reflections(buffer, section.rating, (split,), environments)
    for item in without_too_long(rated_ones, encoder, f"reflections on {split} tasks"):
        contexts[item.context.episode.id] = item.context
        by_parent.setdefault(item.context.episode.id, []).append((item.reflection, item.rating))
    groups = []
    for parent, rated in by_parent.items():
        context = contexts[parent]
        by_text: dict[str, list[tuple[Reflection, float]]] = {}
        for reflection, rating in rated:
            by_text.setdefault(reflection.text, []).append((reflection, rating))
        task = context.episode.task
        groups.append(
            RewardGroup(
                task=f"{task.environment}/{task.id}",
                environment=task.environment,
                prompt=encoder.prompt(context.episode),
                responses=[encoder.response(same[0][0]) for same in by_text.values()],
                ratings=tuple(fmean(rating for _, rating in same) for same in by_text.values()),
                used=(True,) * len(by_text),
            )
        )
    return groups


def to_learn_from(groups: list[RewardGroup], section: RewardSection, seed: int) -> list[RewardGroup]:
    """The groups that have something to learn: a pair, or a (balanced) label.

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
    """Down-sample the more frequent label to 1:1, as the paper's code does."""
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.responses))]
    accepted = [(g, i) for g, i in places if exceeds(groups[g].ratings[i], threshold)]
    rejected = [(g, i) for g, i in places if not exceeds(groups[g].ratings[i], threshold)]
    fewer, more = sorted((accepted, rejected), key=len)
    kept = {*fewer, *random.Random(derive_seed(seed, "reward", "balance")).sample(more, len(fewer))}
    chosen = [
        replace(group, used=tuple((g, i) in kept for i in range(len(group.responses))))
        for g, group in enumerate(groups)
    ]
    return [group for group in chosen if any(group.used)]
