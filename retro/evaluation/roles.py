"""What an arm is made of, and what it is to the other arms: the words in which ``results.json`` describes an arm.

Plots, tables and comparisons read these descriptions. An arm's name is only its label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from itertools import combinations
from typing import Any, TypedDict


class Role(StrEnum):
    """What an arm is to the others when they are compared."""

    SINGLE = "single"
    """No reflections, and fewer attempts than the other arms have."""
    RETRY = "retry"
    """No reflections; the actor at temperature 0."""
    CONTROL = "control"
    """No reflections; a sampling actor. An arm that is not above it gains nothing by its reflections."""
    SHUFFLED = "shuffled"
    """Reflections that were written for other tasks."""
    VAGUE = "vague"
    """Reflections that say nothing about the task."""
    UNTRAINED = "untrained"
    """Reflections of the base."""
    IMITATION = "imitation"
    """Reflections of this run's SFT stage."""
    TRAINED = "trained"
    """Reflections of any other adapter."""
    CEILING = "ceiling"
    """Reflections by someone who knows the task."""


LEARNED = frozenset({Role.IMITATION, Role.TRAINED})
"""The roles of arms whose reflections a trained adapter writes."""


class PolicyParts(TypedDict):
    writer: str
    """``none``, ``base``, ``adapter``, ``shuffled``, ``oracle`` or ``vague``."""
    name: str
    """What the policy is called: ``sft``, ``ppo-env``; of a path, its run and stage."""
    stage: str | None
    """The stage of this run that trained it."""
    path: str | None
    """Where it was found, unless it is this run's own."""
    step: int | None
    """The training step of a checkpoint."""


class Parts(TypedDict):
    """All that decides how an arm plays; two arms with equal parts play equal episodes."""

    policy: PolicyParts
    memory: dict[str, Any]
    sampler: dict[str, Any]
    actor: dict[str, Any]
    """Without the keys that only change speed or cost."""
    attempts: int


class Description(TypedDict):
    role: str
    parts: Parts


_CHAIN = (
    (Role.CONTROL, Role.RETRY),
    (Role.SHUFFLED, Role.CONTROL),
    (Role.UNTRAINED, Role.CONTROL),
    (Role.IMITATION, Role.UNTRAINED),
    (Role.CEILING, Role.CONTROL),
)
"""The method's own steps: the one that should be better first."""
_BELOW_TRAINED = (Role.IMITATION, Role.UNTRAINED, Role.SHUFFLED, Role.CONTROL)


def planned_pairs(arms: Mapping[str, Description]) -> list[tuple[str, str]]:
    """Which arms are compared, the one that should be better first.

    These are the method's chain, each trained policy with what it should be above, each other sampler with the arm that
    it is built on, and the trained policies with one another in the order given.
    """
    plain = {name: arm for name, arm in arms.items() if takes_the_first(arm)}

    def of(role: Role) -> list[str]:
        return [name for name, arm in plain.items() if arm["role"] == role]

    pairs = [(a, b) for above, below in _CHAIN for a in of(above) for b in of(below)]
    for name, arm in arms.items():
        if name not in plain:
            below = [base] if (base := base_of(name, arms)) else []
            pairs += [(name, other) for other in [*below, *of(Role.SHUFFLED)]]
        elif arm["role"] == Role.TRAINED:
            pairs += [(name, other) for role in _BELOW_TRAINED for other in of(role)]
    return [*pairs, *combinations(of(Role.TRAINED), 2)]


def takes_the_first(arm: Description) -> bool:
    """Whether the arm uses a policy's first reflection, as it is."""
    return bool(arm["parts"]["sampler"]["kind"] == "first")


def base_of(name: str, arms: Mapping[str, Description]) -> str | None:
    """The arm that differs from the arm ``name`` in its sampler alone, and takes the first reflection."""
    group = sampler_group(arms[name])
    return next((n for n, a in arms.items() if n != name and takes_the_first(a) and sampler_group(a) == group), None)


def sampler_group(arm: Description) -> str:
    """Equal for arms that differ in their samplers alone."""
    return json.dumps({**arm["parts"], "sampler": None}, sort_keys=True)


def one_of(arms: Mapping[str, Description], role: Role) -> str | None:
    """The first arm of a role that takes a policy's first reflection."""
    return next((name for name, arm in arms.items() if arm["role"] == role and takes_the_first(arm)), None)
