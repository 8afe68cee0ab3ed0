"""ALFWorld: household tasks in text, on the real engine (TextWorld's PDDL) in worker processes.

Source: Shridhar et al. 2021, "ALFWorld: Aligning Text and Embodied Environments for Interactive Learning"
(github.com/alfworld/alfworld, MIT). Played as ReAct and Reflexion do: the opening without the engine's greeting, at
most 49 steps, return 1 for success; see ``docs/environments/alfworld.md``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import SkipValidation

from retro.config import PositiveInt
from retro.envs.alfworld.games import Games, open_games, sources_of
from retro.envs.alfworld.play import Alfworld
from retro.envs.alfworld.workers import WorkerPool
from retro.envs.base import TaskSet, UnknownTaskError
from retro.envs.options import checked
from retro.envs.sources import sources_by_split, split_of
from retro.types import Split, Task, derive_seed

NAME = "alfworld"
Rooms = Mapping[Literal["train", "validation", "test"], Sequence[int]]
"""The rooms of some splits, as ``FloorPlan`` numbers."""


class AlfworldTasks(TaskSet):
    """ALFWorld's games.

    Args:
        data: the folder ``json_2.1.1``, by default the one that ``alfworld-download`` fills; or one folder or parquet
            file for all splits; or a mapping of them by split.
        steps: the step limit.
        admissible: whether observations list the possible actions.
        graded: whether milestones (taken, treated, one of two placed) earn a part of the return.
        workers: the number of processes that take new games; by default one for each core.
        games_per_worker: a worker is replaced after so many games, because the engine frees no memory (about 2 MiB for
            each game that it has not played before).
        rooms: the rooms (``FloorPlan`` numbers) of a split; a split that is not named has all other rooms. By default
            the tasks of one source are divided without regard to rooms.

    Raises:
        ValueError: for a wrong option, or missing data.
    """

    name = NAME
    blocking = True

    @checked
    def __init__(
        self,
        data: SkipValidation[str | Mapping[str, str] | None] = None,
        steps: PositiveInt = 49,
        admissible: bool = False,
        graded: bool = False,
        workers: PositiveInt | None = None,
        games_per_worker: PositiveInt = 100,
        rooms: Rooms | None = None,
    ) -> None:
        self._sources = sources_by_split(sources_of(_default_data() if data is None else data), NAME)
        self._games = {source: open_games(source) for source in dict.fromkeys(self._sources.values())}
        self._rooms = _rooms_by_split(rooms or {})
        self._steps = steps
        self._admissible = admissible
        self._graded = graded
        self.pool = WorkerPool(workers or _cores(), games_per_worker)

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        kinds = self._kinds(split)
        if offset + count > len(kinds):
            raise ValueError(f"alfworld: split {split} has {len(kinds):,} tasks, {offset + count:,} were asked for")
        return [Task(NAME, id, split, kinds[id]) for id in list(kinds)[offset : offset + count]]

    def count(self, split: Split) -> int:
        """How many tasks a split has."""
        return len(self._kinds(split))

    def make(self, task: Task) -> Alfworld:
        return Alfworld(task.id, self._holding(task), self.pool, self._steps, self._admissible, self._graded)

    def oracle(self, task: Task) -> str | None:
        """The walkthrough that comes with the game; None for a game without one."""
        walkthrough = self._holding(task).load(task.id).walkthrough
        return f"These actions solve the task, in this order: {'; '.join(walkthrough)}." if walkthrough else None

    def close(self) -> None:
        self.pool.close()

    def _kinds(self, split: Split) -> Mapping[str, str]:
        if split not in self._sources:
            raise ValueError(
                f"alfworld: data names no source for split {split}; it does for {', '.join(self._sources)}"
            )
        source = self._sources[split]
        kinds = self._games[source].kinds
        if self._rooms:
            ids = [id for id in kinds if self._has_room(split, room_of(id))]
        else:
            among = [other for other in Split if self._sources.get(other) == source]
            ids = [id for id in kinds if split_of(id, NAME, among) is split]
        # Paths begin with the kind of task: in their order, the first tasks would be of few kinds.
        return {id: kinds[id] for id in sorted(ids, key=lambda id: derive_seed(NAME, "order", id))}

    def _has_room(self, split: Split, room: int) -> bool:
        if split in self._rooms:
            return room in self._rooms[split]
        return not any(room in rooms for rooms in self._rooms.values())

    def _holding(self, task: Task) -> Games:
        for games in self._games.values():
            if games.has(task.id):
                return games
        raise UnknownTaskError(f"alfworld: no game {task.id!r} in {', '.join(self._games)}; ids look like TASK/TRIAL")


def room_of(task_id: str) -> int:
    """The ``FloorPlan`` number of a task's room: the last part of its name.

    Raises:
        ValueError: if the name does not end with a number.
    """
    room = task_id.partition("/")[0].rpartition("-")[2]
    if not room.isdecimal():
        raise ValueError(f"alfworld: rooms: the name of task {task_id!r} does not end with the number of a room")
    return int(room)


def _rooms_by_split(rooms: Rooms) -> dict[Split, frozenset[int]]:
    found = {Split(split): frozenset(numbers) for split, numbers in rooms.items()}
    for first, second in combinations(found, 2):
        for room in sorted(found[first] & found[second]):
            raise ValueError(f"alfworld: rooms: room {room} is in two splits, {first} and {second}")
    return found


def _default_data() -> str:
    """Where ``alfworld-download`` puts the games."""
    return str(Path(os.environ.get("ALFWORLD_DATA", "~/.cache/alfworld")).expanduser() / "json_2.1.1")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
