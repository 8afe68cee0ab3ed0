"""The environments, by name: what each is, what it needs, and its task set when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.config import ConfigError, EnvironmentSection
from retro.envs.base import TaskSet
from retro.envs.mixture import mixed_names
from retro.reading import cut

_MOST_SAID_CHARS = 2_000
"""Of what is wrong with options; ScienceWorld's 30 kinds take half of it."""


@dataclass(frozen=True, slots=True)
class Registered:
    """One environment that ships: importing it waits until it is asked for."""

    target: str
    """``module:ClassName`` of its task set."""
    summary: str
    extra: str | None = None
    """What ``pip install 'retro[…]'`` must bring."""
    packages: tuple[str, ...] = ()
    """The import names that the extra brings."""
    data: str = ""
    """How to get its data; empty if it needs none."""
    speed: tuple[str, ...] = ()
    """Options that say how fast it plays, not what happens in it."""


ENVIRONMENTS: dict[str, Registered] = {
    "household": Registered(
        "retro.envs.household:HouseholdTasks", "a text household in ALFWorld's words; the quickstart's, built in"
    ),
    "hotpotqa": Registered(
        "retro.envs.hotpotqa:HotpotQATasks",
        "questions over two Wikipedia pages: Search, Lookup, Finish",
        data="hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json from hotpotqa.github.io",
    ),
    "alfworld": Registered(
        "retro.envs.alfworld:AlfworldTasks",
        "household tasks on the TextWorld engine",
        extra="alfworld",
        packages=("alfworld", "textworld"),
        data="the folder json_2.1.1, by the package's command alfworld-download",
        speed=("workers", "games_per_worker"),
    ),
    "webshop": Registered(
        "retro.envs.webshop:WebshopTasks",
        "a shop of real products: find and buy what an instruction asks for",
        data="items_shuffle.json, items_ins_v2.json and items_human_ins.json of princeton-nlp/WebShop",
        speed=("prepared",),
    ),
    "scienceworld": Registered(
        "retro.envs.scienceworld:ScienceworldTasks",
        "30 kinds of elementary science experiments",
        extra="scienceworld",
        packages=("scienceworld",),
        speed=("engines",),
    ),
    "textworld-express": Registered(
        "retro.envs.textworld_express:TextworldExpressTasks",
        "short text games: coin, cooking, sorting, arithmetic …",
        extra="textworld-express",
        packages=("textworld_express",),
        speed=("engines",),
    ),
    "gymnasium": Registered(
        "retro.envs.gymnasium:GymnasiumTasks",
        "any gymnasium.Env with text observations and actions",
        extra="gymnasium",
        packages=("gymnasium",),
    ),
    "mixture": Registered("retro.envs.mixture:MixtureTasks", "the tasks of several environments, in turn"),
}


def played_environments(section: EnvironmentSection) -> list[str]:
    """The names that a config's section plays, before anything of them is made.

    Raises:
        ConfigError: for a mixture's options that name none.
    """
    if section.name != "mixture":
        return [section.name]
    try:
        return mixed_names(section.options)
    except ValueError as error:
        raise ConfigError(f"environment.options of mixture: {error}") from None


def deciding_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` without those that say how fast it plays: what makes an environment's episodes what they are."""
    speed = ENVIRONMENTS[name].speed if name in ENVIRONMENTS else ()
    deciding = {key: value for key, value in options.items() if key not in speed}
    if name == "mixture" and isinstance(options.get("environments"), list):
        deciding["environments"] = [_deciding_entry(entry) for entry in options["environments"]]
    return deciding


def _deciding_entry(entry: Any) -> Any:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("options"), Mapping):
        return entry
    return {**entry, "options": deciding_options(str(entry.get("name")), entry["options"])}


def missing(name: str) -> list[str]:
    """The packages that the environment called ``name`` needs and that are not installed."""
    return [package for package in ENVIRONMENTS[name].packages if importlib.util.find_spec(package) is None]


def make_taskset(name: str, options: Mapping[str, Any] | None = None) -> TaskSet:
    """The tasks of the environment called ``name``, or of the task set at ``module:ClassName``.

    Raises:
        ConfigError: for an unknown environment, a package that is not installed, options that it does not take, data
            that is not there, or a task set of one's own that calls itself as another environment does.
    """
    if str(Path.cwd()) not in sys.path:  # an installed command does not look for modules where it is called
        sys.path.insert(0, str(Path.cwd()))
    made_by = _task_class(name)
    try:
        _check_names(made_by, options or {})
        taskset = made_by(**(options or {}))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        problem = " ".join(str(error).removeprefix(f"{name}: ").split())
        raise ConfigError(f"environment.options of {name}: {cut(problem, _MOST_SAID_CHARS)}") from error
    if ":" in name and taskset.name in ENVIRONMENTS:  # its prompts and its tasks would be taken for the other's
        raise ConfigError(f"environment {name!r}: its name is {taskset.name!r}, as one that ships is called; change it")
    return taskset


def _check_names(made_by: Callable[..., TaskSet], options: Mapping[str, Any]) -> None:
    """Refuse options that a task set does not know, and ask for those that it needs, in a user's words."""
    known = inspect.signature(made_by).parameters.values()
    if any(entry.kind is entry.VAR_KEYWORD for entry in known):
        return
    names = [entry.name for entry in known]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such option; there are: {', '.join(names) or 'none'}")
    absent = [entry.name for entry in known if entry.default is entry.empty and entry.name not in options]
    if absent:
        raise ValueError(f"{', '.join(absent)}: needed, and not given")


def _task_class(name: str) -> Callable[..., TaskSet]:
    if ":" in name:
        return _of_target(name)
    if name not in ENVIRONMENTS:
        known = ", ".join(sorted(ENVIRONMENTS))
        raise ConfigError(f"environment {name!r} is not known; there are: {known}; your own is named module:ClassName")
    absent = missing(name)
    if absent:
        raise ConfigError(
            f"environment {name!r} needs {', '.join(absent)}: pip install 'retro[{ENVIRONMENTS[name].extra}]'"
        )
    return _of_target(ENVIRONMENTS[name].target)


def _of_target(target: str) -> Callable[..., TaskSet]:
    module_name, _, class_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise  # a module of the user's own imports something that is not there: its traceback is the help
        raise ConfigError(
            f"environment {target!r}: there is no module {module_name!r} in the working folder or among the installed "
            "packages"
        ) from None
    made: Callable[..., TaskSet] | None = getattr(module, class_name, None)
    if made is None:
        raise ConfigError(f"environment {target!r}: the module {module_name!r} has no {class_name!r}")
    if not (hasattr(made, "tasks") and hasattr(made, "make")):
        raise ConfigError(
            f"environment {target!r} is no task set: name the class that derives from retro.envs.base.TaskSet"
        )
    return made
