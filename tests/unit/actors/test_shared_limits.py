"""Limits that several workers keep together: what one process counts for all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from retro.actors.budget import Budget, BudgetExceededError
from retro.actors.shared_limits import Call, LimitCounter, SharedLimits
from retro.config import BudgetSection, ConfigError
from retro.types import Usage
from tests.unit.wire.fake_time import FakeTimeLoop, run_in

ACTOR = "actor"
CALL, USED = Usage(10, 90), Usage(10, 10)


class Here:
    """The connection of a worker to a counter in the same process."""

    def __init__(self, counter: LimitCounter, worker: str) -> None:
        self.counter, self.worker = counter, worker

    async def begin(self, call: Call, estimate: Usage) -> Exception | None:
        return await self.counter.begin(self.worker, call, estimate)

    def end(self, call: Call, used: Usage) -> None:
        self.counter.end(self.worker, call, used)

    def hold(self, actor: str, seconds: float) -> None:
        self.counter.hold(actor, seconds)


def workers(counter: LimitCounter, count: int = 2) -> list[SharedLimits]:
    return [SharedLimits(ACTOR, Here(counter, f"worker {number}")) for number in range(count)]


def counting(
    loop: FakeTimeLoop, requests: int | None = None, tokens: int | None = None, ledger: Path | None = None
) -> LimitCounter:
    counter = LimitCounter(ledger, loop.time)
    for _ in range(2):  # each worker opens them
        counter.open(ACTOR, requests, None, BudgetSection(tokens=tokens))
    return counter


async def call(limits: SharedLimits, seconds: float = 1.0) -> bool:
    """One request; whether it could begin."""
    try:
        await limits.reserve(CALL)
    except BudgetExceededError:
        return False
    await limits.admit(CALL.total)
    await asyncio.sleep(seconds)
    limits.settle(CALL, USED)
    return True


def test_workers_spend_from_one_budget_and_one_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "usage.jsonl"
    loop = FakeTimeLoop()
    counter = counting(loop, tokens=100, ledger=ledger)

    async def calls() -> list[bool]:
        return await asyncio.gather(*(call(limits) for limits in workers(counter) for _ in range(4)))

    begun = run_in(loop, calls())
    assert sum(begun) == 5, "as many as one process begins (tests/unit/actors/test_budget.py)"
    counter.keep()
    assert Budget(ledger=ledger).spent == Usage(50, 50)


def test_workers_keep_one_rate() -> None:
    loop = FakeTimeLoop()
    counter = counting(loop, requests=60)
    times = []

    async def timed(limits: SharedLimits) -> None:
        await limits.reserve(CALL)
        times.append(loop.time())
        limits.settle(CALL, USED)

    async def calls() -> None:
        await asyncio.gather(*(timed(limits) for limits in workers(counter, 3) for _ in range(4)))

    run_in(loop, calls())
    assert [round(at - times[0]) for at in times] == list(range(12))


def test_all_workers_wait_when_the_server_asks_one_of_them() -> None:
    loop = FakeTimeLoop()
    one, other = workers(counting(loop))

    async def calls() -> None:
        one.hold(30.0)
        await call(other, seconds=0.0)

    run_in(loop, calls())
    assert loop.now >= 1030.0


def test_what_a_worker_reserved_is_free_once_it_has_died() -> None:
    loop = FakeTimeLoop()
    counter = counting(loop, tokens=100)
    dies, plays = workers(counter)

    async def calls() -> bool:
        await dies.reserve(CALL)
        waiting = [asyncio.create_task(call(limits)) for limits in (dies, plays)]
        await asyncio.sleep(1.0)
        assert not any(task.done() for task in waiting)
        counter.forget("worker 0")
        began = await waiting[1]
        await dies.reserve(CALL)  # what arrives late reserves nothing
        return began

    assert run_in(loop, calls())


def test_a_request_that_nobody_waits_for_reserves_nothing() -> None:
    loop = FakeTimeLoop()
    counter = counting(loop, requests=1, tokens=150)
    one, other = workers(counter)

    async def calls() -> None:
        await one.reserve(CALL)
        at_the_rate_limit = asyncio.create_task(other.reserve(CALL))  # the budget has room for it
        at_the_budget = asyncio.create_task(other.reserve(CALL))
        await asyncio.sleep(1.0)
        for waiting in (at_the_rate_limit, at_the_budget):
            assert not waiting.done()
            waiting.cancel()
        await asyncio.sleep(1.0)
        one.settle(CALL, Usage())
        assert await call(other) and await call(one), "nothing is spent, and nothing is reserved"

    run_in(loop, calls())


def test_a_ledger_that_cannot_be_read_is_an_error_of_each_worker(tmp_path: Path) -> None:
    ledger = tmp_path / "usage.jsonl"
    ledger.write_text("[]")
    with pytest.raises(ConfigError, match=r"usage\.jsonl"):
        counting(FakeTimeLoop(), ledger=ledger)
