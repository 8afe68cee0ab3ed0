"""ALFWorld's games: folders of the official release, and parquet files with the same fields.

Like ALFWorld's own loader (``alfred_tw_env.py``), this leaves out games whose path names movable receptacles or sliced
objects, games without ``traj_data.json``, games of other kinds than the six, and games that are not marked solvable.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from retro.envs.alfworld.goal import MILESTONES
from retro.envs.sources import existing
from retro.reading import DATA_BYTES, UnreadableError, read_json, read_text

REMEDY = "the official games come by `alfworld-download` (docs/environments/alfworld.md)"
RELEASE_FOLDERS = {"train": "train", "validation": "valid_seen", "test": "valid_unseen"}
"""Our splits, and their folders in ``json_2.1.1``."""
DOMAIN_FILE = "alfred.pddl"
GRAMMAR_FILE = "grammar_template.twl2"
GOAL_MARK = "@@GOAL@@"
KINDS = tuple(MILESTONES)

_ID = re.compile(r"[\w-]+/[\w-]+")
_LEFT_OUT = re.compile("movable|Sliced")
_GAME_FILE = "game.tw-pddl"
_LIST_COLUMNS = ("task", "trial", "task_type", "solvable")
_GAME_COLUMNS = ("goal", "pddl_problem", "walkthrough")


@dataclass(frozen=True, slots=True)
class GameData:
    """The data of one game."""

    kind: str
    domain: str
    grammar: str
    problem: str
    walkthrough: tuple[str, ...]
    """Commands that solve the task; may be empty."""

    @property
    def for_engine(self) -> dict[str, str]:
        return {"pddl_domain": self.domain, "grammar": self.grammar, "pddl_problem": self.problem}


class Games(Protocol):
    """Some games, by id (``TASK/TRIAL``)."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kind of each game, by id, in the order of their paths.

        Raises:
            ValueError: naming a file that is not one of ALFWorld's; so does :meth:`load`.
        """
        ...

    def has(self, id: str) -> bool: ...

    def load(self, id: str) -> GameData: ...


def open_games(source: str) -> Games:
    """The games of a folder or of a parquet file.

    Raises:
        ValueError: if it is neither, has no game, or a file that belongs to it is missing.
    """
    path = existing(source, "alfworld", REMEDY)
    return GameFolder(path) if path.is_dir() else GameTable(path)


def sources_of(data: str | Mapping[str, str]) -> str | Mapping[str, str]:
    """``data`` itself, except that the folder of the release becomes one source for each split."""
    if not isinstance(data, str):
        return data
    folders = {split: Path(data) / folder for split, folder in RELEASE_FOLDERS.items()}
    found = {split: str(folder) for split, folder in folders.items() if folder.is_dir()}
    return found or data


class GameFolder:
    """A folder with ``TASK/TRIAL/game.tw-pddl``, each with its ``traj_data.json``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if next(folder.glob(f"*/*/{_GAME_FILE}"), None) is None:
            raise ValueError(f"alfworld: data: {folder} holds no TASK/TRIAL/{_GAME_FILE}; {REMEDY}")

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        files = self._folder.glob(f"*/*/{_GAME_FILE}")
        ids = sorted("/".join(file.parent.parts[-2:]) for file in files)
        found = {id: self._kind(id) for id in ids if self.has(id)}
        return {id: kind for id, kind in found.items() if kind in KINDS and self._read(id, _GAME_FILE).get("solvable")}

    def has(self, id: str) -> bool:
        if _ID.fullmatch(id) is None or _LEFT_OUT.search(id):
            return False
        return all((self._folder / id / name).is_file() for name in (_GAME_FILE, "traj_data.json"))

    def load(self, id: str) -> GameData:
        game = self._read(id, _GAME_FILE)
        missing = [key for key in ("pddl_domain", "grammar", "pddl_problem") if not isinstance(game.get(key), str)]
        if missing:
            raise ValueError(f"alfworld: {self._folder / id / _GAME_FILE} has no {missing[0]}: it is not a game")
        walkthrough = game.get("walkthrough") or []
        if not isinstance(walkthrough, list):
            raise ValueError(f"alfworld: {self._folder / id / _GAME_FILE}: walkthrough is not a list of commands")
        return GameData(
            self._kind(id), game["pddl_domain"], game["grammar"], game["pddl_problem"], tuple(map(str, walkthrough))
        )

    def _kind(self, id: str) -> str:
        return str(self._read(id, "traj_data.json").get("task_type", ""))

    def _read(self, id: str, name: str) -> dict[str, Any]:
        file = self._folder / id / name
        try:
            content = read_json(file, DATA_BYTES)
        except (OSError, UnreadableError) as error:
            raise ValueError(f"alfworld: {error}; {REMEDY}") from error
        if not isinstance(content, dict):
            raise ValueError(f"alfworld: {file}: an object is expected, not a {type(content).__name__}")
        return content


class GameTable:
    """A parquet file of games, with the domain and the grammar of all of them in files beside it."""

    def __init__(self, file: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._file = file
        self._domain = _beside(file, DOMAIN_FILE)
        self._grammar = _beside(file, GRAMMAR_FILE)
        self._lock = threading.Lock()
        try:
            columns = pyarrow.parquet.read_schema(file).names
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"alfworld: data: {file} is neither a folder nor a parquet file: {error}") from error
        missing = [name for name in (*_LIST_COLUMNS, *_GAME_COLUMNS) if name not in columns]
        if missing:
            raise ValueError(f"alfworld: data: {file} has no column {missing[0]!r}; it has {', '.join(columns)}")

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        return {id: kind for id, (_, kind) in sorted(self._rows.items())}

    def has(self, id: str) -> bool:
        return id in self._rows

    def load(self, id: str) -> GameData:
        row, kind = self._rows[id]
        with self._lock:  # many plays start at once, and the first one reads the file
            games = self._games
        goal, problem, walkthrough = (games[name][row].as_py() for name in _GAME_COLUMNS)
        if not isinstance(goal, str) or not isinstance(problem, str):
            raise ValueError(f"alfworld: data: {self._file}: the game {id} has no goal or no problem")
        return GameData(kind, self._domain, self._grammar.replace(GOAL_MARK, goal), problem, tuple(walkthrough or ()))

    @cached_property
    def _rows(self) -> dict[str, tuple[int, str]]:
        found = {
            f"{game['task']}/{game['trial']}": (row, str(game["task_type"]))
            for row, game in enumerate(self._read(_LIST_COLUMNS).to_pylist())
            if game["solvable"]
        }
        return {id: (row, kind) for id, (row, kind) in found.items() if kind in KINDS and not _LEFT_OUT.search(id)}

    @cached_property
    def _games(self) -> Any:
        return self._read(_GAME_COLUMNS)

    def _read(self, columns: Sequence[str]) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(self._file, columns=list(columns))
        except (OSError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"alfworld: data: {self._file} is damaged: {reason}; {REMEDY}") from error


def _beside(file: Path, name: str) -> str:
    path = file.parent / name
    if not path.is_file():
        raise ValueError(f"alfworld: data: {file} needs {name} beside it: the domain and the grammar of its games")
    try:
        return read_text(path)
    except UnreadableError as error:
        raise ValueError(f"alfworld: data: {error}; {REMEDY}") from error
