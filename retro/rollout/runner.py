"""The protocol of runners, which play attempts, and the kind ``local``, which plays them in this process."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

from retro.config import RunnerSection
from retro.rollout.attempts import Attempt
from retro.rollout.episode import Player
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.types import Episode


class Runner(Protocol):
    """Plays attempts, in this process or elsewhere. It is used from one event loop."""

    @property
    def concurrency(self) -> int:
        """How many attempts it plays at once; further ones wait."""
        ...

    async def play(self, attempt: Attempt) -> Episode:
        """Play an attempt once. An error of the actor or the environment ends the episode (``Episode.broken``); other
        errors are raised."""
        ...

    def close(self) -> None:
        """Close its own threads, processes and connections."""
        ...


class LocalRunnerOptions(RunnerSection):
    """In this process, ``actor.concurrency`` attempts at once."""

    kind: Literal["local"] = "local"


class LocalRunner:
    """Plays ``concurrency`` attempts at once in this process."""

    Options = LocalRunnerOptions

    def __init__(self, player: Player, concurrency: int = 256) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be ≥ 1, not {concurrency}")
        self.concurrency = concurrency
        self._player = player
        self._slots = asyncio.Semaphore(concurrency)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="environment")

    @classmethod
    def from_options(cls, options: LocalRunnerOptions, spec: PlayerSpec, parts: PlayerParts) -> LocalRunner:
        return cls(spec.build(parts), spec.actor.concurrency)

    async def play(self, attempt: Attempt) -> Episode:
        async with self._slots:
            return await self._player.play(attempt, self._threads)

    def close(self) -> None:
        self._threads.shutdown(wait=False)
