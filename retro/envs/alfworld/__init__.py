"""ALFWorld: household tasks in text, on the real engine (TextWorld's PDDL) in worker processes.

Source: Shridhar et al. 2021, "ALFWorld: Aligning Text and Embodied Environments for Interactive Learning"
(github.com/alfworld/alfworld, MIT). Played as ReAct and Reflexion do: the opening without the engine's greeting, at
most 49 steps, return 1 for success; see ``docs/environments/alfworld.md``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro.envs.alfworld.games import RELEASE_FOLDERS, GameData, Games, open_games, sources_of
from retro.envs.alfworld.play import Alfworld
from retro.envs.alfworld.workers import WorkerPool
from retro.envs.base import TaskSet, UnknownTaskError
from retro.envs.sources import sources_by_split, split_of
from retro.types import Split, Task

NAME = "alfworld"


class AlfworldTasks(TaskSet):
    """ALFWorld's games.

    Args:
        data: The folder ``json_2.1.1``, by default the one that ``alfworld-download`` fills; or one folder or parquet
            file for all splits; or a mapping of them by split.
        steps: At most so many actions in a play.
        admissible: Whether observations list what is possible.
        graded: Whether milestones (taken, treated, one of two placed) are worth a part of the return.
        workers: Processes that take new games; by default one a core.
        games_per_worker: After so many games a worker is replaced: the engine gives no memory back.

    Raises:
        ValueError: if the package or the data is not there; for an option out of range.
        TypeError: for an option of another type.
    """

    name = NAME
    blocking = True

    def __init__(
        self,
        data: str | Mapping[str, str] | None = None,
        steps: int = 49,
        admissible: bool = False,
        graded: bool = False,
        workers: int | None = None,
        games_per_worker: int = 20,
    ) -> None:
        _check_installed()
        workers = _cores() if workers is None else workers
        for option, number in {"steps": steps, "workers": workers, "games_per_worker": games_per_worker}.items():
            _check_positive(option, number)
        for option, flag in {"admissible": admissible, "graded": graded}.items():
            if not isinstance(flag, bool):
                raise TypeError(f"alfworld: {option} must be true or false, not {flag!r}")
        self._sources = sources_by_split(sources_of(_default_data() if data is None else _checked(data)), NAME)
        self._games = {source: open_games(source) for source in dict.fromkeys(self._sources.values())}
        self._steps = steps
        self._admissible = admissible
        self._graded = graded
        self.pool = WorkerPool(workers, games_per_worker)

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        kinds = self._kinds(split)
        if offset + count > len(kinds):
            raise ValueError(f"alfworld: split {split} has {len(kinds):,} tasks, {offset + count:,} were asked for")
        return [Task(NAME, id, split, kinds[id]) for id in list(kinds)[offset : offset + count]]

    def make(self, task: Task) -> Alfworld:
        return Alfworld(task.id, self._holding(task), self.pool, self._steps, self._admissible, self._graded)

    def oracle(self, task: Task) -> str | None:
        """The walkthrough that comes with the game, as a plan; None for a game without one."""
        return plan(self._load(task))

    def close(self) -> None:
        self.pool.close()

    def _kinds(self, split: Split) -> Mapping[str, str]:
        if split not in self._sources:
            raise ValueError(
                f"alfworld: data names no source for split {split}; it does for {', '.join(self._sources)}"
            )
        source = self._sources[split]
        among = [other for other in Split if self._sources.get(other) == source]
        kinds = self._games[source].kinds
        return {id: kind for id, kind in kinds.items() if split_of(id, NAME, among) is split}

    def _holding(self, task: Task) -> Games:
        for games in self._games.values():
            if games.has(task.id):
                return games
        raise UnknownTaskError(f"alfworld: no game {task.id!r} in {', '.join(self._games)}; ids look like TASK/TRIAL")

    def _load(self, task: Task) -> GameData:
        return self._holding(task).load(task.id)


def plan(game: GameData) -> str | None:
    """What someone who knows the game would tell the next attempt."""
    if not game.walkthrough:
        return None
    return f"These actions solve the task, in this order: {'; '.join(game.walkthrough)}."


def _check_installed() -> None:
    absent = [package for package in ("alfworld", "textworld") if importlib.util.find_spec(package) is None]
    if absent:
        raise ValueError(f"alfworld: {', '.join(absent)} is not installed: pip install 'retro[alfworld]'")


def _check_positive(option: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"alfworld: {option} must be a whole number, not {number!r}")
    if number < 1:
        raise ValueError(f"alfworld: {option} must be at least 1, not {number}")


def _checked(data: object) -> Any:
    is_mapping = isinstance(data, Mapping) and bool(data) and all(isinstance(name, str) for name in data.values())
    if not isinstance(data, str) and not is_mapping:
        raise TypeError(
            f"alfworld: data must be a folder, a file, or one for each of {', '.join(RELEASE_FOLDERS)}, not {data!r}"
        )
    return data


def _default_data() -> str:
    """Where ``alfworld-download`` puts the games."""
    return str(Path(os.environ.get("ALFWORLD_DATA", "~/.cache/alfworld")).expanduser() / "json_2.1.1")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
