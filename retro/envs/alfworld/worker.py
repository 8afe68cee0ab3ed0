"""A worker process, which plays games and answers each line of JSON with one line.

:mod:`retro.envs.alfworld.workers` starts it as ``python -m retro.envs.alfworld.worker``. It ends when its standard
input ends, so it never outlives the process that started it. Requests: ``{"do": "start", "game": 1, "data": {…},
"asked": […]}``, ``{"do": "step", "game": 1, "command": "look"}``, ``{"do": "close", "game": 1}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from retro.envs.alfworld.goal import Milestone, met

if TYPE_CHECKING:
    from retro.envs.alfworld.engine import Game, Scene


class Games:
    """The games of this process, by number."""

    def __init__(self) -> None:
        self._games: dict[int, tuple[Game, list[Milestone]]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request. An exception of a game becomes an ``error``; the other games continue."""
        try:
            return self._do(request)
        except Exception as error:
            self._games.pop(request["game"], None)
            return {"error": f"{type(error).__name__}: {error}"}

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        from retro.envs.alfworld.engine import open_game

        number = request["game"]
        match request["do"]:
            case "start":
                game = open_game(request["data"])
                self._games[number] = (game, request["asked"])
                return self._described(number, game.start())
            case "step":
                return self._described(number, self._games[number][0].step(request["command"]))
            case "close":
                self._games.pop(number)[0].close()
                return {}
            case other:
                raise ValueError(f"no request {other!r}")

    def _described(self, number: int, scene: Scene) -> dict[str, Any]:
        game, asked = self._games[number]
        return {
            "feedback": scene.feedback,
            "commands": scene.commands,
            "won": scene.won,
            "met": met(game.state, asked),
        }


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the process that started this one; this one ends with its input
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the planner prints must not come between the answers
    games = Games()
    for line in sys.stdin:
        answers.write(json.dumps(games.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
