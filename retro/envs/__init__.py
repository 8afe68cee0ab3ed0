"""The environments, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from retro.config import ConfigError
from retro.envs.base import TaskSet
from retro.envs.household import HouseholdTasks

ENVIRONMENTS: dict[str, Callable[..., TaskSet]] = {"household": HouseholdTasks}


def make_taskset(name: str, options: Mapping[str, Any] | None = None) -> TaskSet:
    """The tasks of the environment called ``name``.

    Raises:
        ConfigError: for an unknown environment, or options that it does not take.
    """
    if name not in ENVIRONMENTS:
        raise ConfigError(f"environment {name!r} is not known; there are: {', '.join(sorted(ENVIRONMENTS))}")
    try:
        return ENVIRONMENTS[name](**(options or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"environment.options of {name}: {error}") from error
