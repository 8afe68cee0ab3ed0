"""Collections from real servers: a model that others serve, and a network that breaks a fifth of the requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from retro.actors.local import LocalActor, LocalOptions
from retro.actors.openai import OpenAIActor, OpenAIOptions
from retro.buffer.store import ReplayBuffer
from retro.envs import make_taskset
from retro.memory import ReflectionWindow
from retro.prompts import load_prompts
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.types import (
    Actor,
    Episode,
    Reflection,
    ReflectionRequest,
    Sampling,
    Split,
    StopReason,
    Task,
    Trajectory,
    Usage,
)
from tests.servers.fault_proxy import Fault
from tests.servers.processes import get, server_process
from tests.servers.transformers_serve import missing_packages, servable, transformers_serve

ACTOR = Path(__file__).parents[2] / "data" / "quickstart" / "actor"
TASKSET = make_taskset("household")
PROMPTS = load_prompts("household")
MAX_TOKENS = 12

A_FIFTH = {
    Fault.RATE_LIMIT: 0.04,
    Fault.RETRY_AFTER_MS: 0.0397,
    Fault.RETRY_AFTER: 0.0003,
    Fault.SERVER_ERROR: 0.04,
    Fault.CUT: 0.03,
    Fault.MALFORMED: 0.0242,
    Fault.WRONG_TYPES: 0.0242,
    Fault.HANG: 0.0008,
    Fault.DRIP: 0.0008,
}
"""Shares of the requests. Rare are the faults that cost a whole timeout, or let everyone wait for a second."""
A_FIFTH_OF_FEW = A_FIFTH | {
    Fault.RATE_LIMIT: 0.0362,
    Fault.RETRY_AFTER: 0.0015,
    Fault.SERVER_ERROR: 0.0362,
    Fault.HANG: 0.004,
    Fault.DRIP: 0.004,
}
"""The same sum; the rare ones are frequent enough for two thousand requests."""
UNTIMED = {fault: rate for fault, rate in A_FIFTH.items() if fault not in (Fault.HANG, Fault.DRIP)}
"""Without those that take a time-out to notice: a model on a busy machine takes as long as it takes."""


class Oracle:
    """Reflects by telling what the room holds: a retry gets another prompt than the attempt before it."""

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        text = TASKSET.oracle(request.episode.task)
        assert text is not None
        return [Reflection(text, "oracle", index) for index in range(request.count)]


@dataclass(frozen=True)
class Served:
    url: str
    model: str


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``transformers serve`` with the quickstart's actor."""
    if missing := missing_packages():
        pytest.skip(f"no {' and '.join(missing)}: pip install 'transformers[serving]'")
    folder = tmp_path_factory.mktemp("served")
    model = servable(ACTOR, folder / "actor")
    with transformers_serve(model, folder / "serve.log") as url:
        yield Served(url, str(model))


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The fast server, whose answers a script gives."""
    log = tmp_path_factory.mktemp("scripted") / "server.log"
    with server_process("tests.servers.completion_server", [], log, "/health") as url:
        yield Served(url, "scripted")


@pytest.fixture(scope="session")
def local() -> LocalActor:
    """The quickstart's actor in this process."""
    return LocalActor.from_options(LocalOptions(model=str(ACTOR), max_tokens=MAX_TOKENS), "cpu")


@contextmanager
def broken(served: Served, rates: Mapping[Fault, float], log: Path) -> Iterator[Served]:
    """``served`` behind a proxy that breaks requests."""
    arguments = ["--target", served.url, "--rates", json.dumps(rates)]
    with server_process("tests.servers.fault_proxy", arguments, log, "/faults") as url:
        yield replace(served, url=url)


def faults(served: Served) -> dict[str, Any]:
    """What the proxy did."""
    return dict(json.loads(get(served.url + "/faults")))


def asking(served: Served, **settings: Any) -> OpenAIActor:
    return OpenAIActor(
        OpenAIOptions(model=served.model, base_url=served.url + "/v1", max_tokens=MAX_TOKENS, **settings)
    )


KEY = ("servers",)


def player(actor: Actor, temperature: float = 0.0) -> Player:
    return Player(TASKSET, actor, PROMPTS, ReflectionWindow(3), Sampling(temperature, 1.0, MAX_TOKENS))


def play(who: Player, tasks: Sequence[Task]) -> list[Episode]:
    """The first attempts at ``tasks``."""
    return [tree[0] for tree in asyncio.run(collect(LocalRunner(who, 16), tasks, Plan(KEY, 1)))]


def assert_whole(episode: Episode) -> None:
    """What was played is what the environment answers, to its end and no further."""
    room = TASKSET.make(episode.task)
    opening, _ = room.reset()
    assert opening == episode.trajectory.opening
    ends = []
    for step in episode.trajectory.steps:
        observation, reward, terminated, truncated, info = room.step(step.action)
        assert (observation, reward) == (step.observation, step.reward)
        ends.append(terminated or truncated)
    assert ends == [False] * (len(ends) - 1) + [True]
    assert episode.success == info["success"]
    assert episode.return_ == pytest.approx(sum(step.reward for step in episode.trajectory.steps))


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_served_model_plays_as_the_local_one_does(served: Served, local: LocalActor, endpoint: str) -> None:
    tasks = TASKSET.tasks(Split.TRAIN, 12)
    here, there = play(player(local), tasks), play(player(asking(served, endpoint=endpoint)), tasks)
    for ours, theirs in zip(here, there, strict=True):
        assert theirs == ours
        assert theirs.usage.prompt_tokens > 0 and theirs.usage.completion_tokens >= 2 * len(theirs.trajectory.steps)


@pytest.mark.parametrize(
    ("count", "requests"), [(30, 200), pytest.param(1000, 10_000, marks=pytest.mark.slow, id="ten thousand")]
)
def test_a_broken_network_changes_nothing_about_what_a_served_model_plays(
    served: Served, local: LocalActor, count: int, requests: int, tmp_path: Path
) -> None:
    tasks = TASKSET.tasks(Split.TRAIN, count, offset=100)
    with broken(served, UNTIMED, tmp_path / "proxy.log") as behind:
        through = play(player(asking(behind, timeout_seconds=600, max_retries=12)), tasks)
        done = faults(behind)
    assert done["requests"] >= requests
    expected, deviation = 0.2 * done["requests"], (0.2 * 0.8 * done["requests"]) ** 0.5
    assert sum(done["faults"].values()) > expected - 4 * deviation
    assert done["unanswered"] == 0
    assert done["passed"] >= sum(len(episode.trajectory.steps) for episode in through)
    assert through == play(player(local), tasks)


def assert_all_accounted_for(trees: list[list[Episode]], recorded: list[str], buffer: ReplayBuffer) -> list[Episode]:
    """Every episode is in the buffer, once and whole, or reported as failed; returns those that failed."""
    episodes = [episode for tree in trees for episode in tree]
    failed = [episode for episode in episodes if episode.stop is StopReason.ACTOR_ERROR]
    complete = {episode.id: episode for episode in episodes if episode.stop is not StopReason.ACTOR_ERROR}
    assert len({episode.id for episode in episodes}) == len(episodes)
    assert sorted(recorded) == sorted(complete)
    assert {episode.id: episode for episode in buffer.episodes()} == complete
    for episode in complete.values():
        assert_whole(episode)
    for episode in failed:
        assert "http://127.0.0.1" in episode.info["error"]
    return failed


def expected_usage(trajectory: Trajectory, memory: Sequence[str]) -> Usage:
    """What the scripted server counts: words, one answer a step."""
    steps = trajectory.steps
    prompts = [PROMPTS.actor(trajectory.opening, steps[:place], memory) for place in range(len(steps))]
    return Usage(sum(len(prompt.split()) for prompt in prompts), sum(len(step.action.split()) for step in steps))


@pytest.mark.no_cover  # thousands of times the same lines; shorter tests cover them, and tracing doubles its time
@pytest.mark.parametrize(
    ("count", "requests", "rates"),
    [
        pytest.param(50, 2_000, A_FIFTH_OF_FEW, id="two thousand"),
        pytest.param(250, 10_000, A_FIFTH, marks=pytest.mark.slow, id="ten thousand"),
    ],
)
def test_requests_of_which_a_fifth_fails(
    scripted: Served, tmp_path: Path, count: int, requests: int, rates: dict[Fault, float]
) -> None:
    tasks = TASKSET.tasks(Split.TRAIN, count)
    recorded: list[str] = []
    with ReplayBuffer(f"sqlite:///{tmp_path / 'buffer.sqlite'}") as buffer:

        class Recorded:
            def get(self, id: str, /) -> Episode | None:
                return buffer.get(id)

            def add(self, episode: Episode, /) -> None:
                buffer.add(episode)
                recorded.append(episode.id)

        def run(actor: Actor) -> list[list[Episode]]:
            runner = LocalRunner(player(actor, temperature=1.0), 64)
            return asyncio.run(collect(runner, tasks, Plan(KEY, 2, 2, 1), Oracle(), Recorded()))

        with broken(scripted, rates, tmp_path / "proxy.log") as behind:
            trees = run(asking(behind, timeout_seconds=10, max_retries=3))
            done = faults(behind)
        failed = assert_all_accounted_for(trees, recorded, buffer)
        steps = sum(len(episode.trajectory.steps) for tree in trees for episode in tree)
        assert done["requests"] >= requests
        assert sum(done["faults"].values()) == pytest.approx(0.2 * done["requests"], rel=0.1)
        assert set(done["faults"]) == {fault.value for fault in rates}
        assert set(map(int, done["asked"])) == {1, 2, 3, 4}  # no request is given up before its retries, or after them
        assert steps <= done["passed"]
        # Each failed episode is one request that was given up. On a busy machine some of these were passed on by the
        # proxy, but too late for the actor: such answers are not among the steps.
        assert 0 <= len(failed) - done["unanswered"] <= done["passed"] - steps
        assert 0 < len(failed) < done["asked"]["4"]
        for tree in trees:
            for episode in tree:
                memory = [] if episode.reflection is None else [episode.reflection.text]
                assert episode.usage == expected_usage(episode.trajectory, memory)

        before, cut = len(recorded), {episode.task.id for episode in failed}
        again = run(asking(scripted))
        assert not assert_all_accounted_for(again, recorded, buffer)
        assert before < len(recorded)
        assert {tree[0].task.id for tree, old in zip(again, trees, strict=True) if tree != old} == cut
