"""The one place that makes a player from a config: a picklable description, built wherever attempts are played."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retro.config import ActorSection, EnvironmentSection, MemorySection, RunConfig, build
from retro.envs import make_taskset
from retro.envs.base import TaskSet
from retro.memory.bank import make_memory
from retro.prompts import PromptLibrary
from retro.rollout.episode import Player
from retro.types import Actor, Sampling

_ASKED = {"temperature", "top_p", "max_tokens", "concurrency"}
"""Keys of an actor that say how it is asked: actors that differ in these alone are one."""


@dataclass
class PlayerParts:
    """What players of one process share: each task set and each actor is made once. Closing it closes the task sets."""

    device: Any = "auto"
    """Where an actor that is loaded here computes."""
    ledger: Path | None = None
    """Where an actor keeps what it has cost (see :attr:`RunConfig.actor_ledger`)."""
    _tasksets: dict[str, TaskSet] = field(default_factory=dict)
    _actors: dict[str, Actor] = field(default_factory=dict)

    def taskset(self, section: EnvironmentSection) -> TaskSet:
        """Raises ConfigError if it cannot be made."""
        name = section.model_dump_json(include={"name", "options"})
        if name not in self._tasksets:
            self._tasksets[name] = make_taskset(section.name, section.options)
        return self._tasksets[name]

    def actor(self, section: ActorSection) -> Actor:
        """Raises ConfigError if it cannot be made."""
        name = section.model_dump_json(exclude=_ASKED)
        if name not in self._actors:
            self._actors[name] = build(section, device=self.device, ledger=self.ledger)
        return self._actors[name]

    def close(self) -> None:
        for taskset in self._tasksets.values():
            taskset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class PlayerSpec:
    """Who plays, as data."""

    environment: EnvironmentSection
    actor: ActorSection
    memory: MemorySection
    bank: Path | None = None
    """The folder of the bank that the memory plays with; without one, it has learnt nothing."""

    @classmethod
    def of(cls, config: RunConfig, bank: Path | None = None) -> PlayerSpec:
        return cls(config.environment, config.actor, config.memory, bank)

    def build(self, parts: PlayerParts) -> Player:
        """The player.

        Raises:
            ConfigError: if the environment, the actor or the prompts cannot be loaded.
        """
        actor = self.actor
        return Player(
            taskset=parts.taskset(self.environment),
            actor=parts.actor(actor),
            prompts=PromptLibrary.from_section(self.environment),
            memory=make_memory(self.memory, self.bank),
            sampling=Sampling(actor.temperature, actor.top_p, actor.max_tokens),
        )
