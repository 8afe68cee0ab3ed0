"""One play of an ALFWorld game, in a worker process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from retro.envs.alfworld.games import Games
from retro.envs.alfworld.goal import milestones
from retro.envs.alfworld.workers import Seat, WorkerPool
from retro.envs.base import EnvironmentFailedError, ReplayedEnvironment, StepResult

ACTIONS = (
    "go to PLACE, open PLACE, close PLACE, take THING from PLACE, put THING in/on PLACE, clean THING with PLACE, heat "
    "THING with PLACE, cool THING with PLACE, use LAMP, examine PLACE or THING, look, inventory"
)
OVER = "The attempt is over."
MAX_ECHO_CHARS = 100
_PUT = re.compile(r"(?:put|move) (?P<thing>.+?) (?:in/on|into|onto|in|on|to) (?P<place>.+)")
_HELP = "help"


def engine_command(action: str) -> str:
    """The engine's form of an action: lower case, single spaces, no full stop, ``move X to Y`` for putting."""
    command = " ".join(action.lower().split()).removesuffix(".")
    put = _PUT.fullmatch(command)
    return f"move {put['thing']} to {put['place']}" if put else command


class Alfworld(ReplayedEnvironment):
    """One play of one game. It has a seat in a worker from :meth:`reset` to :meth:`close`."""

    def __init__(
        self, id: str, games: Games, pool: WorkerPool, steps: int = 49, admissible: bool = False, graded: bool = False
    ) -> None:
        self.horizon = steps
        self._id = id
        self._games = games
        self._pool = pool
        self._admissible = admissible
        self._graded = graded
        self._seat: Seat | None = None

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. The game depends on the task alone, so ``seed`` and ``options`` change nothing.

        Raises:
            EnvironmentFailedError: if the game cannot be read, or its worker is gone.
        """
        self.close()
        try:
            game = self._games.load(self._id)
            asked = milestones(game.kind, game.problem) if self._graded else []
        except ValueError as error:
            raise EnvironmentFailedError(str(error)) from error
        self._seat = self._pool.seat()
        scene = self._seat.start(game.for_engine, asked)
        self.played = []
        self._commands: list[str] = scene["commands"]
        self._unmet = {index for index, held in enumerate(scene["met"]) if not held}
        self._share = 1.0 / (len(asked) + 1)
        self._return = 0.0
        self._terminated = self._truncated = False
        _, _, opening = scene["feedback"].partition("\n\n")
        return self._shown("\n".join(line for line in opening.splitlines() if line)), self._info()

    def step(self, action: str) -> StepResult:
        """Act. An action that the engine does not know also counts as a step.

        Raises:
            EnvironmentFailedError: if the worker is gone or the engine failed.
        """
        if self._seat is None:
            raise RuntimeError("alfworld: reset() comes before step()")
        if self._terminated or self._truncated:
            return OVER, 0.0, self._terminated, self._truncated, self._info()
        command = engine_command(action)
        known = command in self._commands or command == _HELP
        self.played.append(command if known else "")
        if known:
            scene = self._seat.step(command)
            self._commands = scene["commands"]
            self._terminated = scene["won"]
            observation, reward = scene["feedback"].strip(), self._reward(scene["met"])
        else:
            observation, reward = self._nothing_happens(action), 0.0
        self._truncated = not self._terminated and len(self.played) >= self.horizon
        return self._shown(observation), reward, self._terminated, self._truncated, self._info()

    def close(self) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.leave()

    def _reward(self, held: list[bool]) -> float:
        """The share of new milestones; after success, the rest of the return."""
        new = {index for index in self._unmet if held[index]}
        self._unmet -= new
        reward = 1.0 - self._return if self._terminated else self._share * len(new)
        self._return += reward
        return reward

    def _nothing_happens(self, action: str) -> str:
        echo = "".join(letter if letter.isprintable() else " " for letter in action[:MAX_ECHO_CHARS]).strip()
        cut = "…" if len(action) > MAX_ECHO_CHARS else ""
        said = f"[{echo}{cut}] is not possible here and now." if echo else "There was no action."
        return f"Nothing happens. {said}" + ("" if self._admissible else f" Actions are: {ACTIONS}.")

    def _shown(self, observation: str) -> str:
        if not self._admissible or self._terminated:
            return observation
        return f"{observation}\nPossible now: {', '.join(self._commands)}."

    def _info(self) -> dict[str, Any]:
        return {"success": self._terminated, "admissible_commands": list(self._commands)}
