"""Makes players from a config: a picklable description, which is built in the process that plays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from retro.actors.openai import OpenAIActor
from retro.actors.shared_limits import SharedLimits
from retro.config import ActorSection, EnvironmentSection, MemorySection, RunConfig, build
from retro.envs import make_taskset
from retro.envs.base import TaskSet
from retro.memory.bank import make_memory
from retro.prompts import PromptLibrary
from retro.rollout.episode import Player
from retro.types import Actor, Sampling

_ASKED = {"temperature", "top_p", "max_tokens", "concurrency"}
"""Keys of an actor that change its requests only: sections that differ in nothing else share one actor."""


Limits = Callable[[str, ActorSection], SharedLimits]
"""The limits of an actor, by a name that it has in every process and its section."""


class Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class PlayerParts(ExitStack):
    """What the players of one process share: each task set and each actor is made once. Closing closes the task sets,
    and what runners share.

    Args:
        device: Where an actor that is loaded here computes.
        ledger: Where an actor keeps what it has cost (see :attr:`RunConfig.actor_ledger`).
        limits: The limits that other processes keep, too; None lets each process keep its own.
    """

    def __init__(
        self,
        device: Any = "auto",
        ledger: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__()
        self.device = device
        self.ledger = ledger
        self._limits = limits
        self._made: dict[str, Any] = {}
        self._actors: dict[str, Actor] = {}

    def once(self, name: str, make: Callable[[], C]) -> C:
        """What ``make`` made at the first call with this ``name``. It is closed with the parts."""
        if name not in self._made:
            made = self._made[name] = make()
            self.callback(made.close)
        found: C = self._made[name]
        return found

    def taskset(self, section: EnvironmentSection) -> TaskSet:
        """Raises ConfigError if it cannot be made."""
        name = section.model_dump_json(include={"name", "options"})
        return self.once(f"task set {name}", lambda: make_taskset(section.name, section.options))

    def actor(self, section: ActorSection) -> Actor:
        """Raises ConfigError if it cannot be made."""
        name = section.model_dump_json(exclude=_ASKED)
        if name not in self._actors:
            actor = build(section, device=self.device, ledger=self.ledger)
            if self._limits is not None and isinstance(actor, OpenAIActor):
                actor.limit_by(self._limits(name, section))
            self._actors[name] = actor
        return self._actors[name]


@dataclass(frozen=True, slots=True)
class PlayerSpec:
    """The description of a player."""

    environment: EnvironmentSection
    actor: ActorSection
    memory: MemorySection
    bank: Path | None = None
    """The folder of the memory's bank; None for a memory that has learnt nothing."""

    @classmethod
    def of(cls, config: RunConfig, bank: Path | None = None) -> PlayerSpec:
        return cls(config.environment, config.actor, config.memory, bank)

    def build(self, parts: PlayerParts) -> Player:
        """The player. Raises ConfigError if the environment, the actor or the prompts cannot be loaded."""
        actor = self.actor
        return Player(
            taskset=parts.taskset(self.environment),
            actor=parts.actor(actor),
            prompts=PromptLibrary.from_section(self.environment),
            memory=make_memory(self.memory, self.bank),
            sampling=Sampling(actor.temperature, actor.top_p, actor.max_tokens),
        )
