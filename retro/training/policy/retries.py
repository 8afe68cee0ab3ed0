"""The frozen actor's retries of failed episodes: true returns, for rewards and for the guard."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import torch

from retro.config import ConfigError, RunConfig, build
from retro.memory.bank import bank_of
from retro.models.rounds import all_of
from retro.rollout.attempts import Attempt
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.types import Episode


class Retries:
    """Plays attempts, and waits for them.

    Args:
        environments: those of the failed episodes.
        loop: of the whole run: a runner may hold connections that belong to it.

    Raises:
        ConfigError: if one of ``environments`` is not what the config plays.
    """

    def __init__(
        self, config: RunConfig, environments: Collection[str], device: torch.device, loop: asyncio.Runner
    ) -> None:
        self._parts = PlayerParts(device, config.actor_ledger)
        taskset = self._parts.taskset(config.environment)
        strange = sorted(set(environments) - set(taskset.environments))
        if strange:
            raise ConfigError(
                f"ppo: the buffer has failed episodes of {', '.join(strange)}, which environment.name="
                f"{config.environment.name} does not play: play them in a mixture, or choose with buffer.environments"
            )
        spec = PlayerSpec.of(config, bank_of(config.memory, config))
        self._runner: Runner = build(config.runner, spec=spec, parts=self._parts)
        self._loop = loop

    def close(self) -> None:
        """Give back what the runner and the environments hold (processes, connections)."""
        self._runner.close()
        self._parts.close()

    def play(self, attempts: Sequence[Attempt]) -> list[Episode]:
        """Play all, concurrently; the episodes in order."""
        return self._loop.run(self._play(attempts))

    async def _play(self, attempts: Sequence[Attempt]) -> list[Episode]:
        return await all_of(self._runner.play(attempt) for attempt in attempts)
