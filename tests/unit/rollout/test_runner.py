"""A player described as data, and what plays it."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import closing
from pathlib import Path

import pytest

from retro.config import RunConfig, build
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner, Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.types import Episode, Split

OWN_ACTOR = """
from typing import ClassVar
from retro.config import Section
from retro.types import Completion

class Options(Section):
    says: str = "look"

class Parrot:
    Options: ClassVar = Options
    made: ClassVar = []

    def __init__(self, says):
        self.says = says
        self.made.append(says)

    @classmethod
    def from_options(cls, options, device, ledger):
        return cls(options.says)

    async def complete(self, prompt, sampling):
        return Completion(self.says, "stop")
"""
OWN_RUNNER = """
from retro.config import Section

class Twice:
    class Options(Section):
        times: int = 1

    def __init__(self, options, spec, parts):
        self.player, self.options, self.concurrency, self.attempts = spec, options, 2, []

    @classmethod
    def from_options(cls, options, spec, parts):
        return cls(options, spec, parts)

    async def play(self, attempt):
        self.attempts.append(attempt)

    def close(self):
        pass
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    (tmp_path / "own_actor.py").write_text(OWN_ACTOR)
    (tmp_path / "own_runner.py").write_text(OWN_RUNNER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return RunConfig.model_validate({"actor": {"kind": "own_actor:Parrot", "options": {"says": "inventory"}}})


def play(spec: PlayerSpec, config: RunConfig, attempt: Attempt) -> Episode:
    with PlayerParts("cpu") as parts, closing(build(config.runner, spec=spec, parts=parts)) as runner:
        episode: Episode = asyncio.run(runner.play(attempt))
        return episode


def test_a_spec_that_travels_builds_an_equal_player(config: RunConfig) -> None:
    spec = PlayerSpec.of(config)
    travelled = pickle.loads(pickle.dumps(spec))
    assert travelled == spec
    with PlayerParts("cpu") as parts:
        task = parts.taskset(config.environment).tasks(Split.TRAIN, 1)[0]
    attempt = pickle.loads(pickle.dumps(Attempt(("key", 1), task)))
    here, there = play(spec, config, attempt), play(travelled, config, attempt)
    assert here == there
    assert here.id == attempt.id
    assert {step.action for step in here.trajectory.steps} == {"inventory"}


def test_players_share_an_actor_that_is_only_asked_otherwise(config: RunConfig) -> None:
    import own_actor  # type: ignore[import-not-found]

    own_actor.Parrot.made.clear()
    warmer = config.actor.model_copy(update={"temperature": 0.9, "concurrency": 3})
    other = RunConfig.model_validate({"actor": {"kind": "own_actor:Parrot", "options": {"says": "look"}}})
    with PlayerParts("cpu") as parts:
        players = [
            PlayerSpec(config.environment, actor, config.memory).build(parts)
            for actor in (config.actor, warmer, other.actor)
        ]
    assert own_actor.Parrot.made == ["inventory", "look"]
    assert players[0].actor is players[1].actor
    assert players[0].taskset is players[2].taskset
    assert [player.sampling.temperature for player in players] == [0.0, 0.9, 0.0]


def test_a_runner_of_ones_own_is_named_in_the_config(config: RunConfig) -> None:
    own = RunConfig.model_validate({"runner": {"kind": "own_runner:Twice", "options": {"times": 3}}})
    with PlayerParts("cpu") as parts:
        made = build(own.runner, spec=PlayerSpec.of(config), parts=parts)
    assert (made.options.times, made.player) == (3, PlayerSpec.of(config))
    assert RunConfig.model_validate({}).runner.kind == "local"


def test_the_local_runner_plays_as_many_as_the_actor_may_be_asked_at_once(config: RunConfig) -> None:
    bounded = config.actor.model_copy(update={"concurrency": 3})
    with PlayerParts("cpu") as parts:
        runner: Runner = build(config.runner, spec=PlayerSpec(config.environment, bounded, config.memory), parts=parts)
    assert isinstance(runner, LocalRunner)
    assert runner.concurrency == 3
