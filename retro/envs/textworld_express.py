"""TextWorldExpress (Jansen and Côté 2022, arXiv 2208.01174): eight kinds of short text games, fast.

The engine of the package ``textworld-express`` (1.1.0, Apache-2.0) runs in Java, with one process for each play, since
plays in one process would share the things of a task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from retro.config import PositiveInt
from retro.envs.base import UnknownTaskError
from retro.envs.java_games import Engine, Game, JavaTasks, Turn, echo
from retro.envs.options import Names, checked, chosen
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
"""The games, with the actions of each."""

_INTERFACE = "textworldexpress.runtime.PythonInterface"
_SPLITS = {Split.TRAIN: ("train", 0), Split.VALIDATION: ("dev", 10_000), Split.TEST: ("test", 20_000)}
"""Upstream's name of a split, and its first seed. The words of a game are split, too."""
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
        # Upstream takes an action only in its own spelling, including capitals.
        turn = self._turn(_said(engine, self._valid.get(action.casefold(), action)))
        if turn.observation.startswith(_UNKNOWN):
            return Turn(f"'{echo(action)}' is not possible here. {self.allowed}", turn.score, turn.over)
        return turn

    def solve(self, engine: Engine) -> tuple[str, ...]:
        """The shortest of a few walks of upstream's agent, which walks at random (not from our seeds), and often for
        longer than the step limit."""
        walks = [self._walk(engine) for _ in range(_WALKS)]
        return min(walks, key=lambda path: (len(path), path))

    def _walk(self, engine: Engine) -> tuple[str, ...]:
        """One walk of upstream's agent, without the detours that came back to an earlier state."""
        self._begun(engine, gold=True)
        path = tuple(engine.texts("getGoldActionSequence"))
        states = self._states(engine, path)
        start = 0
        while start < len(path):
            for end in range(len(path) - 1, start, -1):
                if states[end] != states[start]:
                    continue
                shorter = path[:start] + path[end:]
                then = self._states(engine, shorter)
                if then[-1] == states[-1]:  # not if the detour was needed, such as for opening a door elsewhere
                    path, states = shorter, then
                    break
            start += 1
        return path

    def _states(self, engine: Engine, path: Sequence[str]) -> list[tuple[Any, ...]]:
        """All that upstream says about the state of a game, at the start and after every action."""
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


class TextworldExpressTasks(JavaTasks):
    """TextWorldExpress's tasks: upstream's 1,000 train, 1,000 development and 1,000 test seeds of every game.

    Args:
        games: some of the eight; all by default.
        parameters: of a game, in upstream's words: ``{"coin": "numLocations=5,includeDoors=0"}``.
        steps: the step limit.
        engines: the number of Java processes that play at once. Further plays wait.

    Raises:
        ValueError: for an unknown game or parameter, or if there is no Java.
    """

    name = "textworld-express"

    @checked
    def __init__(
        self,
        games: Names = tuple(GAMES),
        parameters: Mapping[str, str] | None = None,
        steps: PositiveInt = 50,
        engines: PositiveInt = 16,
    ) -> None:
        from textworld_express.constants import JAR_PATH

        self._games = chosen(self.name, "games", games, list(GAMES))
        super().__init__(JAR_PATH, _INTERFACE, steps, engines)
        self._parameters = dict(parameters or {})
        for kind, text in self._parameters.items():
            if kind not in self._games:
                raise ValueError(f"textworld-express: parameters: {kind!r} is not one of `games`")
            self._asked(partial(load, kind=kind, parameters=text))

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        """One task of each game in turn, each with its seeds in order."""
        held = _SEEDS * len(self._games)
        if offset + count > held:
            raise ValueError(f"textworld-express: split {split} has {held:,} tasks, {offset + count:,} were asked for")
        first = _SPLITS[split][1]
        turns = (divmod(index, len(self._games)) for index in range(offset, offset + count))
        return [
            Task(self.name, f"{self._games[game]}/{first + turn}", split, self._games[game]) for turn, game in turns
        ]

    def _game(self, task: Task) -> TextworldExpressGame:
        kind, _, number = task.id.rpartition("/")
        if kind in self._games and number.isdecimal() and str(int(number)) == number:
            for fold, first in _SPLITS.values():
                if first <= int(number) < first + _SEEDS:
                    return TextworldExpressGame(kind, self._parameters.get(kind, ""), int(number), fold)
        raise UnknownTaskError(
            f"textworld-express: no task {task.id!r} of these games; ids look like {self._games[0]}/0 (train), "
            f"{self._games[0]}/10000 (validation), {self._games[0]}/20000 (test)"
        )


def _said(engine: Engine, action: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(engine.call("stepJSON", action))
    return said


def load(engine: Engine, kind: str, parameters: str) -> None:
    """Set the kind of an engine's next games.

    Raises:
        ValueError: for parameters that the kind does not take.
    """
    problem = engine.call("load", kind, parameters)
    if problem:
        raise ValueError(f"textworld-express: parameters of {kind}: {problem.strip()}")
