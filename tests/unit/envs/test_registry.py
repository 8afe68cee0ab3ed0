"""Environments by name: each keeps the protocol, and what is wrong with a name or an option is said."""

from __future__ import annotations

import json

import pytest

from retro.config import ConfigError
from retro.envs import ENVIRONMENTS, make_taskset
from retro.envs.base import Environment, TaskSet, UnknownTaskError
from retro.prompts import load_prompts
from retro.types import Split, Task


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_every_environment_keeps_the_protocol(name: str) -> None:
    taskset = make_taskset(name)
    assert isinstance(taskset, TaskSet)
    assert taskset.name == name
    for split in Split:
        first, second = taskset.tasks(split, 2), taskset.tasks(split, 1, offset=1)
        assert first[1] == second[0]
        assert {task.split for task in first} == {split}
        assert {task.environment for task in first} == {name}
    task = taskset.tasks(Split.TRAIN, 1)[0]
    assert isinstance(taskset.oracle(task), str | None)
    environment = taskset.make(task)
    assert isinstance(environment, Environment)
    opening, info = environment.reset()
    assert opening
    assert info["success"] is False
    state = json.loads(json.dumps(environment.snapshot()))
    result = environment.step("no such action")
    assert result[0]
    environment.restore(state)
    assert environment.step("no such action") == result
    assert load_prompts(name).actor(opening, (), ())
    with pytest.raises(UnknownTaskError):
        taskset.make(Task(name, "no such task", Split.TRAIN))


def test_options_reach_the_environment() -> None:
    task = make_taskset("household").tasks(Split.TRAIN, 1)[0]
    small, large = (make_taskset("household", {"places": places}).make(task).reset()[0] for places in (4, 12))
    assert len(small.splitlines()[0]) < len(large.splitlines()[0])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("hosehold", {}, r"'hosehold' is not known; there are: .*household"),
        ("household", {"palces": 3}, r"environment\.options of household: .*palces"),
        ("household", {"places": 3}, r"environment\.options of household: .*places must be in"),
    ],
)
def test_a_mistake_is_named(name: str, options: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_taskset(name, options)
