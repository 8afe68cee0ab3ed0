"""The vaults of ``small_world`` as a config, for tests of runners whose workers are other processes."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from small_world import Excluder, Vaults, vault_plan, vault_prompts

from retro.config import RunConfig, build
from retro.rollout.collect import collect
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.types import Episode, Split, to_json

TASKS = tuple(Vaults().tasks(Split.TRAIN, 6))


class World:
    """A config of the vaults whose actor writes into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        vault_prompts(folder)

    def config(self, runner: dict[str, Any], **options: Any) -> RunConfig:
        """With a :class:`vault_actor.VaultActor` of these options."""
        actor = {"kind": "vault_actor:VaultActor", "options": {"folder": str(self.folder), **options}}
        return self.config_of(actor, runner)

    def config_of(self, actor: dict[str, Any], runner: dict[str, Any]) -> RunConfig:
        return RunConfig.model_validate(
            {
                "environment": {"name": "small_world:Vaults", "prompts": str(self.folder)},
                "actor": {"temperature": 1.0, **actor},
                "runner": runner,
            }
        )

    def collect(self, runner: dict[str, Any], **options: Any) -> list[list[Episode]]:
        return played(self.config(runner, **options))

    @property
    def processes(self) -> int:
        return len(list(self.folder.glob("process-*")))


def played(config: RunConfig, ledger: Path | None = None) -> list[list[Episode]]:
    with PlayerParts("cpu", ledger) as parts, closing(made(config, parts)) as player:
        return asyncio.run(collect(player, TASKS, vault_plan(3, 2, 1), Excluder()))


def made(config: RunConfig, parts: PlayerParts) -> Runner:
    runner: Runner = build(config.runner, spec=PlayerSpec.of(config), parts=parts)
    return runner


def written(trees: list[list[Episode]]) -> str:
    return json.dumps([[to_json(episode) for episode in tree] for tree in trees])
