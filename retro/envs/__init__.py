"""The environments by name: their task sets, and which of their options decide an episode."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retro.config import ConfigError, EnvironmentSection, resolve
from retro.config.points import POINTS
from retro.envs.base import TaskSet
from retro.reading import cut

_MOST_SAID_CHARS = 2_000
"""The longest message about options; ScienceWorld's 30 kinds take half of it."""

ENVIRONMENTS = POINTS["environment"].kinds


def played_environments(section: EnvironmentSection) -> list[str]:
    """The names of the environments that a section plays.

    Raises:
        ConfigError: for a mixture's options that name none.
    """
    if section.name != "mixture":
        return [section.name]
    try:
        return mixed_names(section.options)
    except ValueError as error:
        raise ConfigError(f"environment.options of mixture: {error}") from None


def mixed_names(options: Mapping[str, Any]) -> list[str]:
    """The names in a mixture's options.

    Raises:
        ValueError: if there are none, or one of them is there twice or a mixture.
    """
    environments = options.get("environments")
    if not isinstance(environments, Sequence) or isinstance(environments, str) or not environments:
        raise ValueError("mixture: environments must be a list of {name: …, options: {…}}")
    names = []
    for entry in environments:
        if not isinstance(entry, Mapping) or not entry.keys() <= {"name", "options"} or "name" not in entry:
            raise ValueError(f"mixture: environments: {entry!r} must have a name, and may have options")
        names.append(str(entry["name"]))
    if len(set(names)) < len(names) or "mixture" in names:
        raise ValueError(f"mixture: environments: {', '.join(names)}: name each once, and none of them a mixture")
    return names


def deciding_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``options`` that decide an environment's episodes: all except those that change only its speed."""
    speed = ENVIRONMENTS[name].speed if name in ENVIRONMENTS else ()
    deciding = {key: value for key, value in options.items() if key not in speed}
    if name == "mixture" and isinstance(options.get("environments"), list):
        deciding["environments"] = [_deciding_entry(entry) for entry in options["environments"]]
    return deciding


def _deciding_entry(entry: Any) -> Any:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("options"), Mapping):
        return entry
    return {**entry, "options": deciding_options(str(entry.get("name")), entry["options"])}


def make_taskset(name: str, options: Mapping[str, Any] | None = None) -> TaskSet:
    """The tasks of the environment called ``name``, or of the task set at ``module:ClassName``.

    Raises:
        ConfigError: for an unknown environment, a package that is not installed, wrong options, missing data, or a
            task set from outside the package with the name of a built-in environment.
    """
    made_by = resolve("environment", name)
    try:
        _check_names(made_by, options or {})
        taskset: TaskSet = made_by(**(options or {}))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        problem = " ".join(str(error).removeprefix(f"{name}: ").split())
        raise ConfigError(f"environment.options of {name}: {cut(problem, _MOST_SAID_CHARS)}") from error
    if ":" in name and taskset.name in ENVIRONMENTS:  # its prompts and its tasks would be taken for the other's
        raise ConfigError(f"environment {name!r}: its name is {taskset.name!r}, which is built in; change it")
    return taskset


def _check_names(made_by: Callable[..., TaskSet], options: Mapping[str, Any]) -> None:
    """Refuse unknown options, and ask for missing ones, in a user's words."""
    known = inspect.signature(made_by).parameters.values()
    if any(entry.kind is entry.VAR_KEYWORD for entry in known):
        return
    names = [entry.name for entry in known]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such option; there are: {', '.join(names) or 'none'}")
    absent = [entry.name for entry in known if entry.default is entry.empty and entry.name not in options]
    if absent:
        raise ValueError(f"{', '.join(absent)}: required, and not given")
