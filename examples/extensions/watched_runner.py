"""A runner of one's own: a few attempts at once, and a line in a log for each one that has ended.

    runner:
      kind: examples.extensions.watched_runner:WatchedRunner
      options: {at_once: 2, log: attempts.jsonl}

A runner plays attempts. An attempt is data, and has its id before it is played. A `PlayerSpec` is data, too: it builds
the player where it is needed, which may be another process or another machine. A runner changes how fast a run is,
never its result, so a finished stage stays up to date when another runner is chosen.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from retro.config import PositiveInt, Section
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.types import Episode


class WatchedOptions(Section):
    at_once: PositiveInt = 1
    """Attempts under way at once, for an environment or a service that does not bear more."""
    log: str = "attempts.jsonl"
    """A file that grows by a line for each attempt: follow it with ``tail -f``."""


class WatchedRunner:
    Options = WatchedOptions

    def __init__(self, runner: LocalRunner, log: Path) -> None:
        self.runner, self.log = runner, log
        self.concurrency = runner.concurrency

    @classmethod
    def from_options(cls, options: WatchedOptions, spec: PlayerSpec, parts: PlayerParts) -> WatchedRunner:
        return cls(LocalRunner(spec.build(parts), options.at_once), Path(options.log))

    async def play(self, attempt: Attempt) -> Episode:
        started = time.monotonic()
        episode = await self.runner.play(attempt)
        line = {"task": attempt.task.id, "trial": attempt.trial, "id": attempt.id, "stop": episode.stop}
        line |= {"return": episode.return_, "seconds": round(time.monotonic() - started, 3)}
        with self.log.open("a", encoding="utf-8") as file:  # opened anew: other processes append to it, too
            file.write(json.dumps(line) + "\n")
        return episode

    def close(self) -> None:
        self.runner.close()
