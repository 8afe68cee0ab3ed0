"""The stages by name. Each is imported only when it is planned or runs."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from retro.config import ConfigError
from retro.stage import Stage

STAGES = {
    "collect": "retro.training.collect:STAGE",
    "memory": "retro.training.memory:STAGE",
    "sft": "retro.training.sft:STAGE",
    "reward": "retro.training.reward:STAGE",
    "ppo": "retro.training.policy.stage:STAGE",
    "export": "retro.training.export:STAGE",
    "evaluate": "retro.evaluation.stage:STAGE",
}


def stage_named(name: str) -> Stage:
    """The stage with a name in ``STAGES``."""
    module, _, attribute = STAGES[name].partition(":")
    return cast(Stage, getattr(import_module(module), attribute))


@cache
def ordered_stages() -> tuple[Stage, ...]:
    """All stages, each after those that it reads."""
    left = {name: stage_named(name) for name in STAGES}
    ordered: list[Stage] = []
    while left:
        ready = next(name for name, stage in left.items() if not left.keys() & set(stage.reads))
        ordered.append(left.pop(ready))
    return tuple(ordered)


def stage_range(first: str | None, last: str | None) -> tuple[Stage, ...]:
    """The stages from ``first`` until ``last``, both included.

    Raises:
        ConfigError: for an unknown name, or an empty range.
    """
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in STAGES:
            raise ConfigError(f"{option} {name}: no such stage; the stages are {', '.join(STAGES)}")
    stages = ordered_stages()
    names = [stage.name for stage in stages]
    start = names.index(first) if first else 0
    stop = names.index(last) if last else len(names) - 1
    if start > stop:
        raise ConfigError(
            f"--from {first} --until {last}: {last} comes before {first}; the order is {', '.join(names)}"
        )
    return stages[start : stop + 1]
