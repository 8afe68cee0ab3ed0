"""The runner ``processes``: the same episodes as in one process, whatever happens to the others."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vault_world import TASKS, World, made, written

from retro.actors.local import LocalOptions
from retro.actors.openai import OpenAIOptions
from retro.config import ConfigError, RunConfig
from retro.config.points import POINTS
from retro.rollout.attempts import Attempt
from retro.rollout.processes import Workers, WorkersFailedError
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.rollout.worker import Answer, Play, as_sent
from retro.rollout.worker_process import Ready, Receive, Waiting, Worker
from retro.training.collect import STAGE
from retro.types import Episode

TWO: dict[str, Any] = {"kind": "processes", "workers": 2}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def opened(world: World) -> Iterator[int]:
    """The end of a pipe that every process of ``world`` keeps open: reading meets the end once all have ended."""
    os.mkfifo(world.folder / "open")
    reading = os.open(world.folder / "open", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    yield reading
    os.close(reading)


def test_two_processes_play_the_tree_that_one_plays(world: World) -> None:
    one = world.collect({"kind": "local"})
    assert written(world.collect(TWO)) == written(one)
    assert world.processes == 3, "this process, and two workers"


def test_what_a_killed_process_played_is_played_by_another(world: World, caplog: pytest.LogCaptureFixture) -> None:
    one = world.collect({"kind": "local"})
    assert written(world.collect(TWO, deaths=1)) == written(one)
    assert "a worker process was killed by signal 9" in caplog.text
    assert world.processes == 4, "this process, two workers, and one more"


def test_a_process_that_dies_while_nothing_is_played_is_replaced(world: World) -> None:
    attempt = Attempt(("key",), TASKS[0])
    with PlayerParts("cpu") as parts:
        runner = made(world.config({"kind": "processes", "workers": 1}), parts)
        before = asyncio.run(runner.play(attempt))
        [process] = world.folder.glob("process-*")
        os.kill(int(process.name.removeprefix("process-")), signal.SIGKILL)
        workers = runner._workers  # type: ignore[attr-defined]
        while not workers._received:
            time.sleep(0.01)
        assert asyncio.run(runner.play(attempt)) == before
    assert world.processes == 2


def test_attempts_whose_processes_always_die_stop_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retro.rollout.processes.MOST_LOSSES", 1)
    with pytest.raises(
        WorkersFailedError, match=r"2 worker processes ended while .* killed by signal 9.*runner\.workers"
    ):
        world.collect({"kind": "processes", "workers": 1}, deaths=100, dies_after=0)
    assert world.processes == 2


class SlowWorker(Worker):
    """A worker that this test plays, and that is not ready at first."""

    def __init__(self, slot: int, receive: Receive) -> None:
        super().__init__(slot, receive)
        self.ready = False
        self.sent: list[int] = []

    def send(self, message: Any) -> None:
        if isinstance(message, Play):
            self.sent.append(message.number)

    def end(self) -> None: ...

    def join(self) -> None: ...


async def started(jobs: int) -> tuple[list[SlowWorker], list[asyncio.Task[Episode]]]:
    """Two slow workers that are given attempts."""
    slow: list[SlowWorker] = []

    def start(slot: int, receive: Receive) -> SlowWorker:
        slow.append(SlowWorker(slot, receive))
        return slow[-1]

    workers = Workers(2, start)
    attempts = [asyncio.create_task(workers.play(b"player", Attempt((str(n),), TASKS[0]))) for n in range(jobs)]
    await asyncio.sleep(0)
    return slow, attempts


async def hear(worker: SlowWorker, *messages: Any) -> None:
    for message in messages:
        worker.receive(worker, message)
    await asyncio.sleep(0.01)


def test_attempts_are_given_to_workers_that_are_ready_and_no_more_than_their_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waits = Waiting("a core", 60.0)
    episode: Any = object()

    async def scene() -> None:
        (first, second), attempts = await started(4)
        await hear(second, waits)
        assert "2 of 2 workers wait for a core; nothing is played until then" in caplog.text
        await hear(first, Ready())
        assert (first.sent, second.sent) == ([0, 1], []), "the other half is for the other worker"
        await hear(first, Answer(0, episode), Answer(1, episode))
        assert first.sent == [0, 1, 2], "which does not come"
        await hear(second, Ready())
        assert second.sent == [3]
        await hear(first, Answer(2, episode))
        await hear(second, Answer(3, episode))
        assert [attempt.result() for attempt in attempts] == [episode] * 4

    asyncio.run(scene())


@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_without_any_worker_a_run_says_what_is_missing_and_stops(patience: float) -> None:
    async def scene() -> list[Episode | BaseException]:
        slow, attempts = await started(2)
        await hear(slow[1], Waiting("a core", patience))
        for attempt in attempts:
            attempt.cancel()
        return await asyncio.gather(*attempts, return_exceptions=True)

    outcomes = asyncio.run(scene())
    if patience:
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), "they were still waiting"
    else:
        assert all(isinstance(outcome, WorkersFailedError) for outcome in outcomes)
        assert "they wait for a core. What was played is kept" in str(outcomes[0])
        assert "runner.num_cpus" in str(outcomes[0])


def test_workers_that_end_again_and_again_before_they_are_ready_stop_the_run() -> None:
    async def scene() -> BaseException | None:
        slow, attempts = await started(1)
        for number in range(3):
            await hear(slow[number], "was lost: no disk")
        assert len(slow) == 3
        return attempts[0].exception()

    failed = asyncio.run(scene())
    assert isinstance(failed, WorkersFailedError) and "3 worker processes in a row" in str(failed)


def test_errors_of_a_process_are_raised_here(world: World, caplog: pytest.LogCaptureFixture) -> None:
    attempt = Attempt(("key",), TASKS[0])

    async def outcomes(runners: list[Runner]) -> list[Any]:
        return await asyncio.gather(*(runner.play(attempt) for runner in runners), return_exceptions=True)

    with PlayerParts("cpu") as parts:
        failures = ("start", "setting", "bug", "strange", "")
        one = {"kind": "processes", "workers": 1}
        runners = [made(world.config(one, fails=failure), parts) for failure in failures]
        start, setting, bug, strange, episode = asyncio.run(outcomes(runners))
    assert isinstance(start, ConfigError) and str(start) == "actor.model: no such folder"
    assert isinstance(setting, ConfigError) and str(setting) == "actor.model: it has moved"
    assert type(bug) is RuntimeError and str(bug) == "ValueError: not what was expected"
    assert type(strange) is RuntimeError and str(strange) == "StrangeError: cannot travel"
    assert "in complete" in bug.__notes__[0], "the traceback of the other process"
    assert isinstance(episode, Episode)
    assert world.processes == 1, "all runners of a stage share the processes"


def test_a_play_that_nobody_waits_for_is_stopped(world: World, opened: int) -> None:
    attempt = Attempt(("key",), TASKS[0])

    async def both(hangs: Runner, plays: Runner) -> None:
        waiting = asyncio.create_task(hangs.play(attempt))
        await plays.play(attempt)
        waiting.cancel()
        await plays.play(attempt)
        await asyncio.gather(waiting, return_exceptions=True)

    with PlayerParts("cpu") as parts:
        one = {"kind": "processes", "workers": 1}
        asyncio.run(both(made(world.config(one, fails="hangs"), parts), made(world.config(one), parts)))
    assert (world.folder / "stopped").exists()
    assert os.read(opened, 1) == b"", "closing the parts ended the process"


PARENT = """
import asyncio, os, signal, sys
from retro.config import build, load_config
from retro.rollout.attempts import Attempt
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.types import Split

config = load_config(sys.argv[1])
parts = PlayerParts("cpu")
runner = build(config.runner, spec=PlayerSpec.of(config), parts=parts)
[task] = parts.taskset(config.environment).tasks(Split.TRAIN, 1)
asyncio.run(runner.play(Attempt(("key",), task)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_outlives_a_killed_parent(world: World, opened: int) -> None:
    path = world.folder / "config.yaml"
    path.write_text(world.config(TWO).dump(), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", PARENT, str(path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert world.processes == 1, "an attempt needs one process"
    assert os.read(opened, 1) == b""


def test_processes_share_what_is_limited(tmp_path: Path) -> None:
    local = LocalOptions(concurrency=5, cache_gib=3.0).share(2)
    assert (local.concurrency, local.cache_gib) == (3, 1.5)
    limited = OpenAIOptions(base_url="http://127.0.0.1:1/v1", requests_per_minute=100, tokens_per_minute=9).share(4)
    assert (limited.concurrency, limited.requests_per_minute, limited.tokens_per_minute) == (64, 25, 2)


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        ({"requests_per_minute": 1}, "actor.requests_per_minute=1"),
        ({"budget": {"tokens": 10}}, "actor.budget.tokens"),
        ({"budget": {"money": 1.0, "prompt_price": 1.0}}, "actor.budget.money"),
    ],
)
def test_a_limit_that_cannot_be_shared_is_refused(limits: dict[str, Any], key: str) -> None:
    config = RunConfig.model_validate({"actor": {"kind": "openai", **limits}, "runner": TWO})
    with PlayerParts("cpu") as parts, pytest.raises(ConfigError, match=key):
        made(config, parts)


@pytest.mark.parametrize("memory", POINTS["memory"].kinds)
@pytest.mark.parametrize("actor", POINTS["actor"].kinds)
def test_a_spec_of_every_kind_travels(actor: str, memory: str) -> None:
    config = RunConfig.model_validate({"actor": actor, "memory": memory})
    spec = PlayerSpec.of(STAGE.view(config), Path("bank"))
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_another_runner_leaves_a_collection_up_to_date() -> None:
    local, processes = (RunConfig.model_validate({"runner": runner}) for runner in ("local", TWO))
    assert STAGE.deciding(local) == STAGE.deciding(processes)


def test_there_are_as_many_processes_as_cores_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def processes(cores: int) -> int:
        monkeypatch.setattr("retro.rollout.processes.cores", lambda: cores)
        return RunConfig.model_validate({"runner": "processes"}).runner.processes

    assert [processes(cores) for cores in (1, 2, 64)] == [1, 2, 8]


def test_an_error_about_a_file_keeps_its_class() -> None:
    with pytest.raises(FileNotFoundError) as missing:
        Path("no such file").read_text(encoding="utf-8")
    sent = as_sent(missing.value)
    assert isinstance(sent, FileNotFoundError) and sent.filename == "no such file"
