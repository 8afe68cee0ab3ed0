"""The guard: lost episodes, the choice of the best, its interval; the same for one process and for two."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retro.buffer.views import Context
from retro.config import RunConfig
from retro.rollout.attempts import Attempt
from retro.training.policy import guard as guard_module
from retro.training.policy.guard import (
    REPLAYS,
    Guard,
    Measurement,
    PolicyState,
    best_metrics,
    load_state,
    log_best,
    log_measured,
    save_state,
    with_best,
)
from retro.types import Episode, Split, StopReason, Task, Trajectory

RETURNS = (1.0, 0.0, 0.0, 0.0)
START = PolicyState()


def context(index: int, task: str | None = None) -> Context:
    failed = Episode(
        f"e{index}", Task("household", task or f"t{index}", Split.VALIDATION), 0, Trajectory("Open."), 0.0, False,
        StopReason.HORIZON,
    )  # fmt: skip
    return Context(failed, ())


class Reflections:
    """In the place of the models: one text a context."""

    def sample(
        self, contexts: Sequence[Context], sampling: Any, seeds: Sequence[Sequence[int]], step: int
    ) -> list[Any]:
        return [[(SimpleNamespace(finish_reason="stop"), "look again")] for _ in contexts]


class FlakyRetries:
    """Returns by context; the episode at an index is lost as often as ``losses`` says."""

    def __init__(self, losses: dict[int, int]) -> None:
        self.losses = dict(losses)
        self.asked: list[tuple[tuple[Any, ...], int]] = []

    def play(self, attempts: Sequence[Attempt]) -> list[Episode]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, play: Attempt) -> Episode:
        self.asked.append((play.key, play.index))
        lost = self.losses.get(play.index, 0) > 0
        self.losses[play.index] = self.losses.get(play.index, 0) - 1
        value = 0.0 if lost else RETURNS[play.index]
        stop = StopReason.ACTOR_ERROR if lost else StopReason.HORIZON
        info = {"error": "the server is gone"} if lost else {}
        return Episode("r", play.task, 1, Trajectory("Open."), value, value == 1.0, stop, info=info)


def guard_of(losses: dict[int, int], tasks: Sequence[str | None] = (None,) * 4) -> tuple[Guard, FlakyRetries]:
    retries = FlakyRetries(losses)
    contexts = [context(index, task) for index, task in enumerate(tasks)]
    return Guard(RunConfig(), contexts, Reflections(), retries), retries  # type: ignore[arg-type]


def test_lost_episodes_are_played_again_with_the_same_seeds() -> None:
    whole, retries = guard_of({})
    flaky, again = guard_of({1: 1, 2: REPLAYS})
    assert flaky.measure(0, 0, 1) == whole.measure(0, 0, 1)
    assert [index for _, index in retries.asked] == [0, 1, 2, 3]
    assert [index for _, index in again.asked] == [0, 1, 2, 3, 1, 2, 2]
    assert len({key for key, _ in again.asked}) == 1


def test_a_measurement_that_lost_episodes_is_told_and_never_the_best(caplog: pytest.LogCaptureFixture) -> None:
    """[1, 0, 0, 0] is .25; without two of its failures it would be .5."""
    first = guard_of({})[0].measure(0, 0, 1)
    guard, retries = guard_of({1: 99, 2: 99})
    second = guard.measure(0, 0, 1)
    assert (first.return_, second.return_, second.lost) == (0.25, 0.5, 2)
    assert len(retries.asked) == 4 + 2 * REPLAYS  # bounded
    assert "2 of 4 validation episodes were lost" in caplog.text and "the server is gone" in caplog.text
    assert second.metrics["validation_lost"] == 2

    state = with_best(START, 0, False, first)
    assert state is not None and (state.best_step, state.best_return) == (0, 0.25)
    assert with_best(state, 10, True, second) is None


def test_only_if_all_are_lost_the_run_stops() -> None:
    with pytest.raises(ValueError, match="failed in every validation episode: the server is gone"):
        guard_of(dict.fromkeys(range(4), 99))[0].measure(0, 0, 1)


def test_an_actor_whose_prompt_never_fits_has_failed_and_is_not_lost() -> None:
    class Full(FlakyRetries):
        def _one(self, play: Attempt) -> Episode:
            return replace(super()._one(play), stop=StopReason.CONTEXT)

    guard = Guard(RunConfig(), [context(index) for index in range(4)], Reflections(), Full({}))  # type: ignore[arg-type]
    measured = guard.measure(0, 0, 1)
    assert (measured.lost, measured.whole) == (0, True)


def two_processes(monkeypatch: pytest.MonkeyPatch, losses: dict[int, int]) -> list[Measurement]:
    """What each of two processes measures: threads that meet wherever the guard gathers."""
    barrier, shared, ranks = threading.Barrier(2), dict[int, list[Any]](), threading.local()

    def gather(own: list[Any]) -> list[Any]:
        shared[ranks.rank] = own
        barrier.wait(10)
        found = [*shared[0], *shared[1]]
        barrier.wait(10)
        return found

    def measure(rank: int) -> Measurement:
        ranks.rank = rank
        return guard_of(losses)[0].measure(0, rank, 2)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(guard_module, "gather_object", gather)
        return list(pool.map(measure, (0, 1)))


@pytest.mark.parametrize("losses", [{}, {0: 1, 3: 1}, {0: 99}, {1: 99, 3: 99}])  # the last: all of one process
def test_two_processes_measure_what_one_measures(monkeypatch: pytest.MonkeyPatch, losses: dict[int, int]) -> None:
    assert two_processes(monkeypatch, losses) == [guard_of(losses)[0].measure(0, 0, 1)] * 2


def test_the_interval_is_by_task() -> None:
    alone = guard_of({})[0].measure(0, 0, 1).interval
    paired = guard_of({}, ["a", "a", "b", "b"])[0].measure(0, 0, 1).interval
    assert alone == (0.0, 0.75)  # four tasks: the mean of four draws of {1, 0, 0, 0}
    assert paired == (0.0, 0.5)  # two tasks with means ½ and 0: both draws may be the same one
    assert guard_of({}, ["a"] * 4)[0].measure(0, 0, 1).interval is None  # one task says nothing about others


def measured(value: float, lost: int = 0) -> Measurement:
    return Measurement(value, value, value, (value - 0.1, value + 0.1), lost)


def test_the_best_is_the_highest_whole_measurement_and_equal_ones_leave_it() -> None:
    state = START
    values = [measured(0.2), measured((0.2 + 0.2 + 0.2) / 3), measured(0.9, lost=1)]
    for number, value in enumerate(values):
        state = with_best(state, number, False, value) or state
    assert (state.best_step, state.best_return) == (0, 0.2)
    state = with_best(state, 3, False, measured(0.4)) or state
    state = with_best(state, 4, True, measured(0.3)) or state
    assert (state.best_step, state.best_return) == (3, 0.4)
    assert best_metrics(state) == pytest.approx(
        {"best_step": 3, "best_return": 0.4, "best_return_low": 0.3, "best_return_high": 0.5}
    )


def test_without_one_whole_measurement_the_last_policy_is_the_best(caplog: pytest.LogCaptureFixture) -> None:
    assert with_best(START, 5, False, measured(0.9, lost=1)) is None
    state = with_best(START, 10, True, measured(0.1, lost=3))
    assert state is not None
    assert (state.best_step, state.best_return, state.best_interval) == (10, None, None)
    assert "every validation measurement lost episodes" in caplog.text and "step 10, is used" in caplog.text
    caplog.clear()
    unguarded = with_best(START, 10, True, None)
    assert unguarded is not None and unguarded.best_step == 10 and not caplog.text


def test_measurements_and_the_best_are_said_with_intervals(caplog: pytest.LogCaptureFixture) -> None:
    state = with_best(START, 5, False, measured(0.5))
    assert state is not None
    with caplog.at_level(logging.INFO):
        log_measured(5, measured(0.5))
        log_best(state)
    assert "validation after step 5: return 0.500 (95 % interval 0.400 to 0.600), success" in caplog.text
    assert "the best is step 5, validation return 0.500 (95 % interval 0.400 to 0.600)" in caplog.text


def test_the_state_keeps_the_interval_and_older_states_are_read(tmp_path: Path) -> None:
    state = with_best(START, 5, False, measured(0.5))
    assert state is not None
    save_state(state, tmp_path)
    assert load_state(tmp_path) == state
    values = json.loads((tmp_path / "state.json").read_text())
    del values["best_interval"]  # as older versions wrote it
    (tmp_path / "state.json").write_text(json.dumps(values))
    assert load_state(tmp_path).best_return == 0.5 and load_state(tmp_path).best_interval is None
