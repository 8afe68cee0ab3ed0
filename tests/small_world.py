"""A world small enough to count by hand, for tests of the loop: guess a vault's digit within three steps.

Everything implements the project's protocols; nothing stands in for anything else.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro.envs.base import Environment, TaskSet, UnknownTaskError
from retro.memory import ReflectionWindow
from retro.prompts import PromptSet
from retro.rollout.attempts import Plan
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.types import (
    ActorError,
    Completion,
    Prompt,
    Reflection,
    ReflectionRequest,
    Sampling,
    Split,
    Task,
    Usage,
    derive_seed,
)

DIGITS = 8
HORIZON = 3


class Vault(Environment):
    """One secret digit. The alarm (guessing the one above it) ends the episode at once."""

    def __init__(self, secret: int) -> None:
        self.secret = secret

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.steps = 0
        return "Open the vault.", {"success": False}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        truncated = self.steps == HORIZON
        if action == f"try {self.secret}":
            return "It opens.", 1.0, True, False, {"success": True}
        if action == f"try {(self.secret + 1) % DIGITS}":
            return "Alarm!", 0.0, True, False, {"success": False}
        return ("Nothing happens.", 0.0, False, truncated, {"success": False})

    def snapshot(self) -> Any:
        return self.steps

    def restore(self, state: Any) -> None:
        self.steps = state


class Vaults(TaskSet):
    name = "vault"

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        return [Task("vault", f"{split}-{number}", split, "digit") for number in range(offset, offset + count)]

    def make(self, task: Task) -> Vault:
        if task.environment != self.name:
            raise UnknownTaskError(task.id)
        return Vault(derive_seed("secret", task.id) % DIGITS)

    def oracle(self, task: Task) -> str | None:
        return f"try {derive_seed('secret', task.id) % DIGITS}"


class Guesser:
    """Guesses what its prompt does not exclude: the least at temperature 0, a seeded draw otherwise.

    ``jitter`` lets each call wait a number of turns of the loop that nobody seeds; ``fails`` calls fail for good.
    """

    def __init__(self, jitter: random.Random | None = None, fails: frozenset[int] = frozenset()) -> None:
        self.jitter = jitter
        self.fails = fails
        self.calls = 0
        self.samplings: list[Sampling] = []
        self.under_way = self.most_under_way = 0

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        self.calls += 1
        self.samplings.append(sampling)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self.calls in self.fails:
            self.under_way -= 1
            raise ActorError("the server is gone")
        for _ in range(self.jitter.randrange(4) if self.jitter else 0):
            await asyncio.sleep(0)
        self.under_way -= 1
        return self.guess(prompt, sampling)

    def guess(self, prompt: Prompt, sampling: Sampling) -> Completion:
        assert isinstance(prompt, str)
        excluded = {int(digit) for digit in re.findall(r"(?:not|try) (\d)", prompt)}
        left = [digit for digit in range(DIGITS) if digit not in excluded] or [0]
        digit = left[0] if sampling.temperature == 0 else random.Random(sampling.seed).choice(left)
        return Completion(f"try {digit}", "stop", Usage(len(prompt.split()), 2))


class Excluder:
    """Says of one guess of the trajectory that it was wrong (seeded: which one)."""

    def __init__(self) -> None:
        self.requests: list[ReflectionRequest] = []

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        self.requests.append(request)
        await asyncio.sleep(0)
        guesses = [step.action.removeprefix("try ") for step in request.episode.trajectory.steps]
        return [
            Reflection(f"not {random.Random(derive_seed(request.seed, index)).choice(guesses)}", "test", index)
            for index in range(request.count)
        ]


def vault_prompts(folder: Path) -> PromptSet:
    """The vault's prompts, from templates written into ``folder``."""
    (folder / "actor.jinja").write_text(
        "{% for entry in memory %}{{ entry }}\n{% endfor %}{{ opening }}\n"
        "{% for step in steps %}> {{ step.action }}\n{{ step.observation }}\n{% endfor %}> "
    )
    (folder / "reflection.jinja").write_text(
        "{% for entry in memory %}{{ entry }}\n{% endfor %}{{ opening }}\n"
        "{% for step in steps %}> {{ step.action }}\n{{ step.observation }}\n{% endfor %}score {{ score }}\nreflection:"
    )
    return PromptSet("vault", folder)


def vault_player(prompts: PromptSet, actor: Guesser, temperature: float = 1.0) -> Player:
    return Player(
        taskset=Vaults(),
        actor=actor,
        prompts=prompts,
        memory=ReflectionWindow(2),
        sampling=Sampling(temperature=temperature, max_tokens=8),
    )


def vault_runner(prompts: PromptSet, actor: Guesser, concurrency: int = 256) -> LocalRunner:
    return LocalRunner(vault_player(prompts, actor), concurrency)


def vault_plan(attempts: int, group: int = 1, controls: int = 0, seed: int = 0) -> Plan:
    return Plan((seed, "test"), attempts, group, controls)
