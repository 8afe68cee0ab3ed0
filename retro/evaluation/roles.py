"""How ``results.json`` describes an arm: its parts, and its role when it is compared with other arms.

Plots, tables and comparisons read these descriptions, never the arm's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from itertools import combinations
from typing import Any, NotRequired, TypedDict


class Writer(StrEnum):
    """Who writes an arm's reflections."""

    NONE = "none"
    BASE = "base"
    """The untrained retrospective model: the base with its adapters off."""
    ADAPTER = "adapter"
    SHUFFLED = "shuffled"
    """The best arm's model, for another task of the same kind and trial."""
    ORACLE = "oracle"
    """Someone who knows the task."""
    VAGUE = "vague"
    """One sentence that says nothing about the task."""


class Role(StrEnum):
    """What an arm is compared as."""

    SINGLE = "single"
    """No reflections, and fewer attempts than the other arms have."""
    RETRY = "retry"
    """No reflections; the actor at temperature 0."""
    CONTROL = "control"
    """No reflections; the actor samples its retries. An arm that is not above it gains nothing by its reflections."""
    SHUFFLED = "shuffled"
    VAGUE = "vague"
    UNTRAINED = "untrained"
    IMITATION = "imitation"
    """This run's SFT stage."""
    TRAINED = "trained"
    """Any other adapter."""
    CEILING = "ceiling"
    """The oracle."""


LEARNED = frozenset({Role.IMITATION, Role.TRAINED})
"""The roles of arms whose reflections a trained adapter writes."""


class Parts(TypedDict):
    """The fields of an :class:`~retro.evaluation.arms.Arm` as JSON, without the keys that only change speed or cost."""

    policy: dict[str, Any]
    memory: dict[str, Any]
    sampler: dict[str, Any]
    actor: dict[str, Any]
    retries: NotRequired[dict[str, Any]]
    """Absent if it equals ``actor``."""
    attempts: int
    advice: NotRequired[int]
    """Absent if its actor cannot ask for advice."""


class Description(TypedDict):
    role: str
    parts: Parts
    bank: NotRequired[dict[str, Any]]
    """The facts of the bank that it played with (:class:`retro.memory.bank.BankFacts`): its size, and what it cost.
    Absent if its memory does not learn across tasks."""


_CHAIN = (
    (Role.CONTROL, Role.RETRY),
    (Role.SHUFFLED, Role.CONTROL),
    (Role.UNTRAINED, Role.CONTROL),
    (Role.IMITATION, Role.UNTRAINED),
    (Role.CEILING, Role.CONTROL),
)
"""The steps of the method: of each pair, the role that should be better comes first."""
_BELOW_TRAINED = (Role.IMITATION, Role.UNTRAINED, Role.SHUFFLED, Role.CONTROL)


def planned_pairs(arms: Mapping[str, Description]) -> list[tuple[str, str]]:
    """Which arms are compared; of each pair, the arm that should be better comes first.

    The pairs are the steps of the method, each trained policy with every arm that it should be above, each arm that
    samples in another way or gives advice with the arm that it is built on, and every two trained policies in the order
    given.
    """
    plain = {name: arm for name, arm in arms.items() if is_plain(arm)}

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


def is_plain(arm: Description) -> bool:
    """Whether the arm uses the first reflection that its policy samples, and its actor cannot ask for advice."""
    return bool(arm["parts"]["sampler"]["kind"] == "first") and "advice" not in arm["parts"]


def base_of(name: str, arms: Mapping[str, Description]) -> str | None:
    """The plain arm that differs from the arm ``name`` in its sampler or its advice alone."""
    group = base_group(arms[name])
    return next((n for n, a in arms.items() if n != name and is_plain(a) and base_group(a) == group), None)


def base_group(arm: Description) -> str:
    """Equal for arms that differ in their samplers and their advice alone."""
    kept = {key: part for key, part in arm["parts"].items() if key not in ("sampler", "advice")}
    return json.dumps(kept, sort_keys=True)


def one_of(arms: Mapping[str, Description], role: Role) -> str | None:
    """The first plain arm of a role."""
    return next((name for name, arm in arms.items() if arm["role"] == role and is_plain(arm)), None)
