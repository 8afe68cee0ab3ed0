"""The bank of a memory that learns across tasks: folded in one order, saved, named, loaded."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from retro.artifacts import write_json
from retro.buffer import ReplayBuffer
from retro.config import ConfigError, MemorySection, RunConfig, parse_config
from retro.memory import LearningMemory, Query
from retro.memory.bank import (
    FACTS,
    BankFacts,
    bank_inputs,
    bank_of,
    copy_bank,
    fold_bank,
    identity,
    learns,
    make_memory,
)
from retro.types import Episode, Reflection, Split, Step, StopReason, Task, Trajectory, Usage, to_json
from tests.unit.memory.plays import memory_section, play, task

OWN = {"kind": "tests.learning_memory:Beginnings", "options": {"size": 3}}


def section(**changes: object) -> MemorySection:
    return RunConfig.model_validate({"memory": {**OWN, **changes}}).memory


def episode(task: int, trial: int, name: str = "a") -> Episode:
    step = Step(f"go to {task}.{trial}.{name}", "ok")
    of = Task("household", f"t{task}", Split.TRAIN)
    return Episode(f"{task}-{trial}-{name}", of, trial, Trajectory("?", (step,)), 0.0, False, StopReason.HORIZON)


EPISODES = [episode(task, trial, name) for task in range(3) for trial in range(2) for name in "ab"]
QUERY = Query(EPISODES[0].task, "?", (Reflection("look first", "test"),))


def test_only_a_memory_that_folds_learns() -> None:
    assert learns(section())
    assert not learns(MemorySection())
    assert isinstance(make_memory(section()), LearningMemory)
    assert not isinstance(make_memory(RunConfig().memory), LearningMemory)


def test_the_order_of_episodes_does_not_change_the_bank(tmp_path: Path) -> None:
    digests = set()
    for seed in range(4):
        with ReplayBuffer(f"sqlite:///{tmp_path}/{seed}.sqlite") as buffer:
            for played in random.Random(seed).sample(EPISODES, len(EPISODES)):
                buffer.add(played)
            digests.add(fold_bank(section(), buffer.episodes(), tmp_path / str(seed)).digest)
        memory = make_memory(section(), tmp_path / str(seed))
        assert memory.recall(QUERY).ids == ("2-0-b", "2-1-a", "2-1-b", "reflection-0")
    assert len(digests) == 1
    assert fold_bank(section(), EPISODES[1:], tmp_path / "less").digest not in digests


@pytest.mark.parametrize("twisted", [EPISODES[::-1], [*EPISODES[:3], EPISODES[2]], [EPISODES[1], EPISODES[0]]])
def test_another_order_is_refused(twisted: list[Episode], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in the order of environment, task, trial and id"):
        fold_bank(section(), twisted, tmp_path)


def test_a_bank_is_loaded_as_it_was_saved_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    facts = fold_bank(section(), EPISODES, tmp_path / "bank")
    copy_bank(tmp_path / "bank", tmp_path / "copy")
    loaded = make_memory(section(), tmp_path / "copy")
    assert isinstance(loaded, LearningMemory)
    assert BankFacts.read(tmp_path / "copy") == facts
    assert loaded.digest == facts.digest
    assert make_memory(section()).recall(QUERY).entries == ("look first",)  # without its bank it has learnt nothing
    assert fold_bank(section(), EPISODES[:2], tmp_path / "copy").digest != facts.digest  # over a bank that is there
    write_json(tmp_path / "bank" / FACTS, to_json(replace(facts, digest="another")))
    with pytest.raises(ConfigError, match=r"bank is .*, but bank\.json says another"):
        make_memory(section(), tmp_path / "bank")


def test_a_bank_says_what_it_cost_and_how_large_it_is(tmp_path: Path) -> None:
    played = [replace(episode(task, 0), usage=Usage(100, task)) for task in range(3)]
    facts = fold_bank(section(), played, tmp_path)
    assert (facts.episodes, facts.actor_tokens, facts.entries) == (3, 303, None)
    assert facts.bytes == (tmp_path / "content" / "beginnings.json").stat().st_size
    assert facts.memory == section().model_dump(mode="json")


def test_a_bank_that_is_not_there_is_an_error_with_its_stage(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"memory": OWN, "runs": str(tmp_path)})
    with pytest.raises(ConfigError, match="run the stage memory first"):
        bank_inputs(config)
    bank = bank_of(config.memory, config)
    assert bank is not None
    bank.mkdir(parents=True)
    (bank / FACTS).write_text("[]")
    with pytest.raises(ConfigError, match="run the stage memory again"):
        bank_inputs(config)
    facts = fold_bank(config.memory, EPISODES, bank)
    assert bank_inputs(config) == {"bank": facts.digest}


def test_only_the_runs_own_memory_has_a_bank(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"memory": OWN, "runs": str(tmp_path)})
    assert bank_of(section(), config) == tmp_path / "run" / "memory"
    with pytest.raises(ConfigError, match="is not the run's own memory"):
        bank_of(section(options={"size": 1}), config)
    assert bank_of(MemorySection(), config) is None
    assert bank_inputs(RunConfig()) == {}


def test_keys_that_were_added_later_are_no_part_of_ids_until_they_are_used() -> None:
    parts = identity(memory_section("playbook"))
    assert {"kind", "bullets", "shuffled"} < parts.keys()
    assert parts.keys().isdisjoint({"vectors", "curator", "retries_per_request"})
    assert identity(memory_section("playbook", vectors="some-encoder")) == {**parts, "vectors": "some-encoder"}


def test_whom_a_bank_was_curated_by_is_not_kept_with_it_and_changes_no_ids(tmp_path: Path) -> None:
    curator = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    section = memory_section("playbook", curator=curator, retries_per_request=3)
    assert identity(section) == identity(memory_section("playbook"))
    facts = fold_bank(section, [], tmp_path, ask=_Silent())
    assert (facts.memory["curator"], facts.memory["retries_per_request"]) == (None, 8)
    with pytest.raises(ConfigError, match=r"memory\.curator\.base_url .*a password in a URL"):
        parse_config({"memory": {"kind": "playbook", "curator": {**curator, "base_url": "http://a:b@c/v1"}}}, "test")
    with pytest.raises(ConfigError, match="its prompts are not shortened"):
        parse_config({"memory": {"kind": "playbook", "curator": {"kind": "local", "context_tokens": 9}}}, "test")


def test_a_retry_that_begins_within_a_failed_episode_is_not_folded(tmp_path: Path) -> None:
    episode = replace(play(task("a"), "look around."), info={"kept_steps": 2})
    with pytest.raises(ConfigError, match="fold a buffer whose retries begin at the start"):
        fold_bank(memory_section("retrieval"), [episode], tmp_path)


class _Silent:
    tokens = 0

    def __call__(self, prompt: str) -> str:
        raise AssertionError("there is nothing to ask about")
