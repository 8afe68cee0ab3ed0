"""TextWorldExpress (Jansen and Côté 2022, arXiv 2208.01174): eight kinds of short text games, fast.

The engine of the package ``textworld-express`` (1.1.0, Apache-2.0) runs in Java, one process a play: within a process,
plays of one task would move one another's things.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from retro.envs.base import TaskSet, UnknownTaskError
from retro.envs.java import JavaProcess, find_java
from retro.envs.java_games import Engine, EnginePool, Game, JavaPlay, Turn, at_least_one, echo
from retro.types import Split, Task

_ROOMS = "look around, inventory, move DIRECTION, open/close door to DIRECTION"
GAMES = {
    "cookingworld": (
        f"{_ROOMS}, open/close/examine/take/eat THING, put THING in PLACE, cook THING in PLACE, slice/dice/chop THING, "
        "read cookbook, prepare meal"
    ),
    "twc": f"{_ROOMS}, open/close/take THING, put THING in PLACE",
    "coin": f"{_ROOMS}, open/close/take THING",
    "mapreader": "look around, inventory, task, read map, move DIRECTION, take THING, put THING in PLACE",
    "arithmetic": "look around, inventory, take THING, read math problem (once taken), put THING in PLACE",
    "sorting": "look around, inventory, take THING, put THING in PLACE",
    "simonsays": "what Simon says, word by word",
    "peckingorder": "look around, inventory, read instructions book, take THING, put THING in PLACE",
}
"""The games, and which actions each has."""

_INTERFACE = "textworldexpress.runtime.PythonInterface"
_SPLITS = {Split.TRAIN: ("train", 0), Split.VALIDATION: ("dev", 10_000), Split.TEST: ("test", 20_000)}
"""Upstream's name of a split, and its first seed; a game's words are split, too."""
_SEEDS = 1_000
_UNKNOWN = "Unknown action"
_WALKS = 3


class TextworldExpressGame(Game):
    """One game of one seed."""

    def __init__(self, kind: str, parameters: str, seed: int, fold: str) -> None:
        self._kind = kind
        self._parameters = parameters
        self._seed = seed
        self._fold = fold
        self._valid: dict[str, str] = {}

    @property
    def allowed(self) -> str:
        return f"Allowed: {GAMES[self._kind]}; things and places as they are called here."

    def start(self, engine: Engine) -> Turn:
        turn = self._turn(self._begun(engine))
        return Turn(f"{engine.call('getTaskDescription').strip()}\n\n{turn.observation}", turn.score, turn.over)

    def act(self, engine: Engine, action: str) -> Turn:
        # Upstream takes an action only in its own spelling, capitals included.
        turn = self._turn(_said(engine, self._valid.get(action.casefold(), action)))
        if turn.observation.startswith(_UNKNOWN):
            return Turn(f"'{echo(action)}' is not possible here. {self.allowed}", turn.score, turn.over)
        return turn

    def walk(self, engine: Engine) -> list[str]:
        """The way of upstream's scripted agent to the end, without the detours that can be left out."""
        self._begun(engine, gold=True)
        path = engine.texts("getGoldActionSequence")
        states = self._states(engine, path)
        place = 0
        while place < len(path):
            for later in range(len(path) - 1, place, -1):
                if states[later] != states[place]:
                    continue
                shorter = path[:place] + path[later:]
                then = self._states(engine, shorter)
                if then[-1] == states[-1]:  # a detour that opened a door elsewhere was none
                    path, states = shorter, then
                    break
            place += 1
        return path

    def _states(self, engine: Engine, path: Sequence[str]) -> list[tuple[Any, ...]]:
        """All that upstream tells of where a game stands, at the start and after every action."""
        said = [self._begun(engine), *(_said(engine, action) for action in path)]
        return [
            (one["tasksuccess"], one["look"], one["inventory"], one["score"], set(one["validActions"])) for one in said
        ]

    def _begun(self, engine: Engine, gold: bool = False) -> dict[str, Any]:
        load(engine, self._kind, self._parameters)
        said: dict[str, Any] = json.loads(engine.call("generateNewGameJSON", self._seed, self._fold, gold))
        return said

    def _turn(self, said: dict[str, Any]) -> Turn:
        self._valid = {action.casefold(): action for action in said["validActions"]}
        return Turn(said["observation"].strip(), said["score"], said["tasksuccess"] or said["taskfailure"])


class TextworldExpressTasks(TaskSet):
    """TextWorldExpress's tasks: of every game, upstream's 1,000 train, 1,000 development and 1,000 test seeds.

    Args:
        games: Which of the eight; all by default.
        parameters: Of a game, in upstream's words: ``{"coin": "numLocations=5,includeDoors=0"}``.
        steps: The step limit.
        engines: How many Java processes play at once. More plays wait for one.

    Raises:
        ValueError: for a game or a parameter that there is not, or if there is no Java.
    """

    name = "textworld-express"
    blocking = True

    def __init__(
        self,
        games: Sequence[str] = tuple(GAMES),
        parameters: Mapping[str, str] | None = None,
        steps: int = 50,
        engines: int = 16,
    ) -> None:
        try:
            from textworld_express.constants import JAR_PATH
        except ImportError as error:
            raise ValueError(f"textworld-express needs {error.name}: pip install 'retro[textworld-express]'") from None
        self._games = _chosen(games)
        self._steps = at_least_one(self.name, "steps", steps)
        engines = at_least_one(self.name, "engines", engines)
        start = partial(JavaProcess, self.name, find_java(), Path(JAR_PATH))
        self._engines = EnginePool(start, _INTERFACE, engines)
        self._gold: dict[str, tuple[str, ...]] = {}
        self._parameters = self._checked({} if parameters is None else parameters)

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        """The games in turn, each with its seeds in order."""
        held = _SEEDS * len(self._games)
        if offset + count > held:
            raise ValueError(f"textworld-express: split {split} has {held:,} tasks, {offset + count:,} were asked for")
        first = _SPLITS[split][1]
        places = (divmod(place, len(self._games)) for place in range(offset, offset + count))
        return [
            Task(self.name, f"{self._games[game]}/{first + turn}", split, self._games[game]) for turn, game in places
        ]

    def make(self, task: Task) -> JavaPlay:
        return JavaPlay(task, self._game(task), self._engines, self._steps)

    def oracle(self, task: Task) -> str | None:
        """A solution, made of upstream's own."""
        actions = self.gold_path(task)
        return f"these actions, in this order, solve the task: {'; '.join(actions)}." if actions else None

    def gold_path(self, task: Task) -> tuple[str, ...]:
        """Actions that solve a task: what is left of upstream's scripted agent's without its detours.

        It walks at random, from no seed of ours, and often for longer than the step limit. Of a few walks, each cut
        where it came back to a state that it had been in, the shortest one is taken, once a task set.

        Raises:
            UnknownTaskError: if the id is not one of this environment's.
            EnvironmentFailedError: if its engine fails.
        """
        game = self._game(task)
        if task.id not in self._gold:
            engine = self._engines.borrow(wait=False)
            try:
                walks = [tuple(game.walk(engine)) for _ in range(_WALKS)]
                self._gold[task.id] = min(walks, key=lambda path: (len(path), path))
            finally:
                self._engines.give_back(engine)
        return self._gold[task.id]

    def close(self) -> None:
        self._engines.close()

    def _game(self, task: Task) -> TextworldExpressGame:
        kind, seed, fold = self._parsed(task)
        return TextworldExpressGame(kind, self._parameters.get(kind, ""), seed, fold)

    def _parsed(self, task: Task) -> tuple[str, int, str]:
        kind, _, number = task.id.rpartition("/")
        if kind in self._games and number.isdecimal() and str(int(number)) == number:
            for fold, first in _SPLITS.values():
                if first <= int(number) < first + _SEEDS:
                    return kind, int(number), fold
        raise UnknownTaskError(
            f"textworld-express: no task {task.id!r} of these games; ids look like {self._games[0]}/0 (train), "
            f"{self._games[0]}/10000 (validation), {self._games[0]}/20000 (test)"
        )

    def _checked(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """The parameters, once the engine has taken them."""
        if not isinstance(parameters, Mapping):
            raise ValueError(f"textworld-express: parameters must map a game to a text, not {parameters!r}")
        for kind, text in parameters.items():
            if kind not in self._games or not isinstance(text, str):
                raise ValueError(
                    f"textworld-express: parameters: {kind!r}: {text!r} must be a game of `games` and a text"
                )
            engine = self._engines.borrow(wait=False)
            try:
                load(engine, kind, text)
            finally:
                self._engines.give_back(engine)
        return dict(parameters)


def _said(engine: Engine, action: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(engine.call("stepJSON", action))
    return said


def load(engine: Engine, kind: str, parameters: str) -> None:
    """Have the next games of an engine be of a kind.

    Raises:
        ValueError: for parameters that the kind does not take.
    """
    problem = engine.call("load", kind, parameters)
    if problem:
        raise ValueError(f"textworld-express: parameters of {kind}: {problem.strip()}")


def _chosen(games: Any) -> list[str]:
    if isinstance(games, str) or not isinstance(games, Sequence) or not games:
        raise ValueError(f"textworld-express: games must be a list of names, not {games!r}")
    unknown = [game for game in games if game not in list(GAMES)]
    if unknown:
        raise ValueError(f"textworld-express: games: there is no {unknown[0]!r}; there are: {', '.join(GAMES)}")
    return [game for game in GAMES if game in games]
