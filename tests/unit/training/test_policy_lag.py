"""``ppo.lag``: the actor plays the next step's retries while a step learns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retro.buffer.views import Context
from retro.config import RunConfig, parse_config
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner
from retro.stage import run_stage
from retro.training.algorithms.ppo import Ppo
from retro.training.collect import STAGE as COLLECT
from retro.training.policy.ahead import AHEAD_FILE, load_ahead, save_ahead
from retro.training.policy.batch import Batch
from retro.training.policy.groups import Response
from retro.training.policy.loop import Loop
from retro.training.policy.stage import STAGE as POLICY
from retro.types import Episode, Split, StopReason, Task, Trajectory
from tests.policy_stage import fresh_run, metrics, prepare, rollouts

Fresh = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def fresh(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    runs = tmp_path_factory.mktemp("runs")
    return partial(
        fresh_run, prepare(tiny_model_dir, runs, partial(run_stage, COLLECT)), tiny_model_dir, runs, validate_every=4
    )


def test_a_step_is_sampled_by_the_policy_before_the_last_update(fresh: Fresh) -> None:
    lagged = fresh("lagged", lag=1)
    run_stage(POLICY, lagged)
    still = fresh("still", learning_rate=1e-30, value_learning_rate=1e-30)  # the policy stays as it is
    run_stage(POLICY, still)

    def written(config: RunConfig, step: int) -> list[tuple[str, float]]:
        return [(row["reflection"], row["score"]) for row in rollouts(config, step)]

    for step in (1, 2):
        assert written(lagged, step) == written(still, step)
    for step in (3, 4):
        assert written(lagged, step) != written(still, step)


def test_old_log_probabilities_are_those_of_the_policy_that_sampled(fresh: Fresh) -> None:
    lagged = fresh("gaps", lag=1)
    run_stage(POLICY, lagged)
    lines = [line for line in metrics(lagged) if "policy_loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["sampler_gap_max"] < 1e-4 for line in lines)
    plain = fresh("no-lag")
    run_stage(POLICY, plain)
    later = [line["approx_kl"] for line in lines[1:]]
    assert later != [line["approx_kl"] for line in metrics(plain) if "policy_loss" in line][1:]


def test_the_actor_plays_the_next_step_while_one_learns(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []
    loops: list[Loop] = []
    begin, learn = Loop.__init__, Ppo.learn

    def kept(self: Loop, *args: Any) -> None:
        begin(self, *args)
        loops.append(self)

    def waiting(self: Ppo, batch: Batch) -> Any:
        ahead = loops[0]._ahead
        if ahead is not None:  # nobody but the thread can play them now
            played.append(len(ahead.playing.result(timeout=120)))
        return learn(self, batch)

    monkeypatch.setattr(Loop, "__init__", kept)
    monkeypatch.setattr(Ppo, "learn", waiting)
    run_stage(POLICY, fresh("beside", lag=1))
    assert played == [8, 8, 8]


def test_an_interrupt_does_not_wait_for_the_actor(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    play = LocalRunner.play
    waits = threading.Event()

    async def hanging(self: LocalRunner, attempt: Attempt) -> Episode:
        if attempt.key[-1] == 2:
            waits.set()
            await asyncio.Event().wait()
        return await play(self, attempt)

    def interrupted(self: Ppo, batch: Batch) -> Any:
        assert waits.wait(120)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalRunner, "play", hanging)
        patch.setattr(Ppo, "learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_stage(POLICY, fresh("stopped", lag=1))


def test_what_was_sampled_ahead_is_read_back_whatever_its_size(tmp_path: Path) -> None:
    numbers = tuple(-index / 3 for index in range(300))
    sampled = [
        Response(slot, index, tuple(range(300)), numbers, f"look, {index}", "stop", numbers)
        for slot in range(24)
        for index in range(8)
    ]
    save_ahead(sampled, tmp_path)
    assert (tmp_path / AHEAD_FILE).stat().st_size > 2**20  # more than a settings file may have
    context = Context(
        Episode("e", Task("household", "t", Split.TRAIN), 0, Trajectory(""), 0.0, False, StopReason.HORIZON)
    )
    groups = load_ahead(tmp_path, dict.fromkeys((3, 17), context))
    assert [response for group in groups for response in group.responses] == [r for r in sampled if r.slot in (3, 17)]


@pytest.mark.parametrize(
    ("ppo", "message"),
    [
        ({"reward": "model"}, "lag: 1 has no effect"),
        ({"advantage": "chain", "turns": 2}, "lag: the next turn of a chain is sampled after the actor's retry"),
    ],
)
def test_a_lag_that_saves_nothing_is_refused(ppo: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config({"name": "run", "ppo": {"reward": "environment", "lag": 1, **ppo}}, "test")
