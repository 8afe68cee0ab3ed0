"""Environments of the library verifiers, played in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retro.config import ConfigError
from retro.envs import make_taskset
from retro.envs.base import EnvironmentFailedError, TaskSet, UnknownTaskError
from retro.envs.testing import check_environment
from retro.types import Split, Task

PYTHON = os.environ.get("RETRO_VERIFIERS") or (sys.executable if importlib.util.find_spec("verifiers") else "")
needs_verifiers = pytest.mark.skipif(
    not PYTHON, reason="needs verifiers: set RETRO_VERIFIERS to a Python interpreter that has it"
)
GUESS: dict[str, Any] = {"id": "verifiers_worlds", "horizon": 3, "python": PYTHON}


@pytest.fixture(scope="module")
def guess() -> Iterator[TaskSet]:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(Path(__file__).parent)
        world = make_taskset("verifiers", GUESS)
        yield world
        world.close()


@needs_verifiers
def test_a_real_environment_keeps_the_contract_of_environments(guess: TaskSet) -> None:
    check_environment(guess, actions=["1", "2", "3", "9"])


@needs_verifiers
def test_plays_have_observations_returns_and_ends_of_their_own(guess: TaskSet) -> None:
    first, second = (guess.make(task) for task in guess.tasks(Split.TRAIN, 2))
    opening = ("A game of numbers.\n\nA number from 1 to 13?", {"success": False})
    assert (first.reset(), second.reset()) == (opening, opening)
    won = "the play is over; rewards: begged 0, right 1"
    assert second.step("1") == ("It is more.", 0.0, False, False, {"success": False})
    assert first.step("1") == (won, 1.0, True, False, {"success": True})
    assert first.step("1")[0] == "the play is over"
    assert second.step("4")[0] == "It is less, or that was not a number."
    lost = "the play is over; rewards: begged -0.5, right 0"
    assert second.step("please") == (lost, 0.0, False, True, {"success": False})
    first.close()
    second.close()


@needs_verifiers
def test_tasks_without_an_environment_of_their_own_end_with_the_first_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    world = make_taskset("verifiers", {**GUESS, "config": {"id": "single-agent"}, "rows": 1})
    play = world.make(world.tasks(Split.TRAIN, 1)[0])
    play.reset()
    assert play.step("2")[1:] == (0.0, True, False, {"success": False})
    world.close()


@needs_verifiers
def test_a_reward_that_fails_and_a_process_that_dies_end_their_plays_only(guess: TaskSet) -> None:
    [ungraded, dying] = [guess.make(Task("verifiers", row, Split.TRAIN, "")) for row in ("row-12", "row-0")]
    ungraded.reset()
    with pytest.raises(EnvironmentFailedError, match="OSError: nobody grades this one"):
        ungraded.step("13")
    dying.reset()
    with pytest.raises(EnvironmentFailedError, match="a worker process ended with exit status 3"):
        dying.step("die")
    dying.reset()
    assert dying.step("1")[2], "in a new process"
    ungraded.close()
    dying.close()


@needs_verifiers
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": "nowhere"}, "'nowhere' cannot be played: ModuleNotFoundError: taskset 'nowhere' not found"),
        ({"config": {"taskset": {"numbers": []}}}, r"it has no tasks: check config\.taskset"),
        ({"config": {"taskset": {"clock": True}}}, r"need tools \(Clock\), which retro's actors do not call"),
        ({"config": {"id": "user-sim"}}, "it has the agents assistant, user, and retro plays one"),
    ],
)
def test_what_cannot_be_played_is_refused(options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(ConfigError, match=said):
        make_taskset("verifiers", {**GUESS, **options})


def script(folder: Path, *lines: str) -> dict[str, Any]:
    """An interpreter that does not run what it is told to."""
    path = folder / "python"
    path.write_text("\n".join(["#!/bin/sh", "read request", *lines]) + "\n", encoding="utf-8")
    path.chmod(0o700)
    return {"id": "any", "horizon": 3, "python": str(path)}


def test_an_interpreter_without_verifiers_is_refused_with_the_remedy(tmp_path: Path) -> None:
    options = script(tmp_path, "echo \"ModuleNotFoundError: No module named 'verifiers'\" >&2", "exit 1")
    with pytest.raises(ConfigError, match="No module named 'verifiers'; it must have verifiers: pip install"):
        make_taskset("verifiers", options)
    with pytest.raises(ConfigError, match="no worker process can be started"):
        make_taskset("verifiers", {**options, "python": str(tmp_path / "nothing")})


def test_rows_are_spread_over_the_splits_by_shares(tmp_path: Path) -> None:
    world = make_taskset("verifiers", {**script(tmp_path, "echo '{\"rows\": 7}'"), "shares": [2, 0, 1]})
    rows = {split: [task.id for task in world.tasks(split, n)] for split, n in ((Split.TRAIN, 5), (Split.TEST, 2))}
    assert rows == {Split.TRAIN: ["row-0", "row-1", "row-3", "row-4", "row-6"], Split.TEST: ["row-2", "row-5"]}
    assert [task.id for task in world.tasks(Split.TRAIN, 2, offset=1)] == ["row-1", "row-3"]
    with pytest.raises(ValueError, match="'any' has 0 of its 7 rows in the split validation"):
        world.tasks(Split.VALIDATION, 1)
    with pytest.raises(UnknownTaskError, match="no task 'row-7'; ids are row-0 to row-6"):
        world.make(Task("verifiers", "row-7", Split.TEST, ""))


@pytest.mark.parametrize(
    ("then", "timeout", "said"),
    [
        ("exit 7", 60.0, "a worker process ended with exit status 7"),
        ("read request", 0.1, r"no answer within 0\.1 s \(environment\.options\.timeout\)"),
    ],
)
def test_a_process_that_does_not_answer_ends_the_play(tmp_path: Path, then: str, timeout: float, said: str) -> None:
    options = script(tmp_path, "echo '{\"rows\": 1}'", "read request", then)
    world = make_taskset("verifiers", {**options, "timeout": timeout})
    play = world.make(world.tasks(Split.TRAIN, 1)[0])
    with pytest.raises(EnvironmentFailedError, match=said):
        play.reset()
    play.close()
    world.close()
