"""The stages by name. Importing this loads none of them: each is imported when it is planned or runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast

from retro.config import STAGES, ConfigError, RunConfig

StageFunction = Callable[[RunConfig], Path]

HOMES = {
    "collect": "retro.training.collect",
    "sft": "retro.training.sft",
    "reward": "retro.training.reward",
    "ppo": "retro.training.ppo",
    "export": "retro.agent.export",
    "evaluate": "retro.evaluation.stage",
}


def stage_function(name: str) -> StageFunction:
    """``run_NAME`` of the stage's module."""
    return cast(StageFunction, getattr(import_module(HOMES[name]), f"run_{name}"))


def stage_range(first: str | None, last: str | None) -> tuple[str, ...]:
    """The stages from ``first`` until ``last``, both included.

    Raises:
        ConfigError: for a name that is no stage, or an empty range.
    """
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in STAGES:
            raise ConfigError(f"{option} {name}: no such stage; the stages are {', '.join(STAGES)}")
    start = STAGES.index(first) if first else 0
    stop = STAGES.index(last) if last else len(STAGES) - 1
    if start > stop:
        raise ConfigError(
            f"--from {first} --until {last}: {last} comes before {first}; the order is {', '.join(STAGES)}"
        )
    return STAGES[start : stop + 1]
