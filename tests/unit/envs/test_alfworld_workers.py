"""Worker processes: how games are spread, what happens when one dies, and that none is left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retro.envs.alfworld.workers import Seat, WorkerPool
from retro.envs.base import EnvironmentFailedError
from tests.servers.processes import PATIENCE_SECONDS
from tests.unit.envs.alfworld_rooms import COOL_MUG, READ_BOOK, Room

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("textworld") is None, reason="needs pip install 'retro[alfworld]'"
)

MakePool = Callable[[int, int], WorkerPool]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    pools: list[WorkerPool] = []

    def make(workers: int, games_per_worker: int) -> WorkerPool:
        pools.append(WorkerPool(workers, games_per_worker))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def engine_data(room: Room) -> dict[str, str]:
    return {key: value for key, value in room.data().items() if isinstance(value, str)}


def play(seat: Seat, room: Room) -> bool:
    """Play the walkthrough; whether it won."""
    won = seat.start(engine_data(room))["won"]
    for command in room.walkthrough:
        won = seat.step(command)["won"]
    return bool(won)


def ended(pid: int) -> bool:
    """Whether the process is no more (a zombie that nobody has buried is none)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_games_are_spread_over_the_workers(make_pool: MakePool) -> None:
    pool = make_pool(2, 20)
    seats = [pool.seat() for _ in range(5)]
    assert sorted(worker.games for worker in pool.workers) == [2, 3]
    for seat in seats[:4]:
        pool.left(seat.worker)
    assert sorted(worker.games for worker in pool.workers) == [0, 1]
    assert pool.seat().worker.games == 1


def test_a_worker_is_replaced_after_its_games(make_pool: MakePool) -> None:
    pool = make_pool(1, 2)
    pids = []
    for _ in range(3):
        seat = pool.seat()
        assert play(seat, READ_BOOK)
        pids.append(seat.worker.pid)
        seat.leave()
    assert pids[0] == pids[1] != pids[2]
    assert ended(pids[0])
    assert [worker.pid for worker in pool.workers] == [pids[2]]


def test_a_full_worker_ends_with_the_last_of_its_games(make_pool: MakePool) -> None:
    pool = make_pool(1, 1)
    first, second = pool.seat(), pool.seat()
    assert first.worker is not second.worker
    assert first.worker.alive
    first.leave()
    assert not first.worker.alive
    assert pool.workers == (second.worker,)


def test_a_dead_worker_fails_its_plays_and_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool(1, 20)
    first, second = pool.seat(), pool.seat()
    first.start(engine_data(COOL_MUG))
    second.start(engine_data(READ_BOOK))
    os.kill(first.worker.pid, signal.SIGKILL)
    for seat in (first, second):
        with pytest.raises(EnvironmentFailedError, match="a worker process was killed by signal 9; its last words"):
            seat.step("look")
        seat.leave()
    assert play(pool.seat(), READ_BOOK)
    assert len(pool.workers) == 1


def test_what_a_worker_says_before_it_dies_is_quoted(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    seat = make_pool(1, 20).seat()
    with pytest.raises(EnvironmentFailedError, match="ended with exit status 3; its last words: no such library"):
        seat.start(engine_data(COOL_MUG))


def test_a_broken_game_fails_alone(make_pool: MakePool) -> None:
    pool = make_pool(1, 20)
    good, bad = pool.seat(), pool.seat()
    good.start(engine_data(READ_BOOK))
    with pytest.raises(EnvironmentFailedError, match="the engine failed: "):
        bad.start({**engine_data(READ_BOOK), "pddl_problem": "(define (problem"})
    bad.leave()
    assert good.step("look")["feedback"]
    assert pool.workers == (good.worker,)


def test_ctrl_c_in_the_terminal_does_not_end_a_worker(make_pool: MakePool) -> None:
    seat = make_pool(1, 20).seat()
    seat.start(engine_data(READ_BOOK))
    os.kill(seat.worker.pid, signal.SIGINT)
    assert seat.step("look")["feedback"]


def test_many_threads_play_at_once(make_pool: MakePool) -> None:
    pool = make_pool(2, 3)

    def one(number: int) -> bool:
        seat = pool.seat()
        try:
            return play(seat, (COOL_MUG, READ_BOOK)[number % 2])
        finally:
            seat.leave()

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(12)))
    assert sum(worker.games for worker in pool.workers) == 0


def test_close_ends_all_workers_also_under_plays(make_pool: MakePool) -> None:
    pool = make_pool(2, 20)
    seats = [pool.seat(), pool.seat()]
    for seat in seats:
        seat.start(engine_data(READ_BOOK))
    pool.close()
    assert not any(seat.worker.alive for seat in seats)
    with pytest.raises(EnvironmentFailedError, match="ended with exit status 0"):
        seats[0].step("look")
    seats[0].leave()


SCRIPT = """
import sys
from retro.envs.alfworld.workers import WorkerPool
from tests.unit.envs.test_alfworld_workers import engine_data
from tests.unit.envs.alfworld_rooms import READ_BOOK
pool = WorkerPool(2, 20)
for seat in (pool.seat(), pool.seat()):
    seat.start(engine_data(READ_BOOK))
print(*(worker.pid for worker in pool.workers), flush=True)
if sys.argv[1] == "wait":
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["killed", "exits"])
def test_no_worker_outlives_whoever_started_it(end: str) -> None:
    root = Path(__file__).parents[3]
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "wait" if end == "killed" else "end"],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    with script:
        assert script.stdout is not None
        pids = [int(pid) for pid in script.stdout.readline().split()]
        assert len(pids) == 2
        if end == "killed":
            assert not any(ended(pid) for pid in pids)
            script.kill()
        script.wait(PATIENCE_SECONDS)
        wait_until(lambda: all(ended(pid) for pid in pids))
    assert script.returncode == (-signal.SIGKILL if end == "killed" else 0)
