"""``environment``: the actor's own retry with the reflection; its return minus the failed episode's (true ΔG)."""

from __future__ import annotations

from typing import ClassVar, Literal

from retro.config import RewardTermSection


class EnvironmentOptions(RewardTermSection):
    """The actor's own retry: its return minus that of the failed episode."""

    kind: Literal["environment"] = "environment"


class EnvironmentReward:
    Options = EnvironmentOptions
    needs: ClassVar[frozenset[str]] = frozenset({"retries"})
