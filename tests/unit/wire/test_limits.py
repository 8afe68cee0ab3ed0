"""Rate limits on a clock of our own: never too many in a minute, hardly fewer, in order, and nobody spins."""

from __future__ import annotations

import asyncio
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.wire.limits import Bucket, RateLimiter
from tests.unit.wire.fake_time import FakeTimeLoop, run_in

MINUTE = 60.0


def most_in_a_minute(events: list[tuple[float, float]]) -> float:
    """The largest sum of amounts in 60 seconds, the last instant left out; ``events`` are (time, amount), in order."""
    return max(sum(amount for at, amount in events if start <= at < start + MINUTE - 1e-6) for start, _ in events)


@given(
    per_minute=st.integers(1, 5_000),
    moves=st.lists(st.tuples(st.floats(0, 90), st.integers(1, 400)), min_size=1, max_size=60),
)
def test_a_bucket_gives_at_most_its_limit_a_minute_and_what_one_call_takes_beyond_it(
    per_minute: int, moves: list[tuple[float, int]]
) -> None:
    bucket, now, taken = Bucket(per_minute, 0.0), 0.0, []
    for lull, amount in moves:
        now += lull
        pause = bucket.pause(amount, now)
        now += pause
        assert bucket.pause(amount, now) <= 1e-6 * pause + 1e-9
        bucket.take(amount, now)
        taken.append((now, amount))
    beyond = max(amount for _, amount in taken) - 1
    assert most_in_a_minute(taken) <= per_minute + max(0, beyond) + 1e-6


@given(per_minute=st.integers(1, 600), lulls=st.lists(st.floats(0, 60), min_size=1, max_size=40))
def test_requests_a_minute_are_kept_exactly(per_minute: int, lulls: list[float]) -> None:
    bucket, now, taken = Bucket(per_minute, 0.0), 0.0, []
    for lull in lulls * 3:
        now += lull
        now += bucket.pause(1, now)
        bucket.take(1, now)
        taken.append((now, 1.0))
    assert most_in_a_minute(taken) <= per_minute


def test_what_is_put_back_is_there_again_also_above_the_brim() -> None:
    bucket = Bucket(60, 0.0)  # one at once, one a second
    bucket.take(5, 0.0)
    assert bucket.pause(1, 0.0) == pytest.approx(5.0)
    bucket.take(-3, 0.0)
    assert bucket.pause(1, 0.0) == pytest.approx(2.0)
    bucket.take(-4, 0.0)  # three are there, and no more will be
    bucket.take(3, 100.0)
    assert bucket.pause(1, 100.0) == pytest.approx(1.0)
    bucket.take(0, 1000.0)
    bucket.take(2, 1000.0)
    assert bucket.pause(1, 1000.0) == pytest.approx(2.0)


def admitted(
    arrivals: list[float], requests: int | None, tokens: int | None, reserved: int, used: int
) -> tuple[list[tuple[float, int]], FakeTimeLoop]:
    """(time, number) of calls in the order in which they were let in; each lasts a second."""
    loop = FakeTimeLoop()
    limiter = RateLimiter(requests, tokens, loop.time)
    let_in: list[tuple[float, int]] = []

    async def call(number: int, at: float) -> None:
        await asyncio.sleep(at)
        await limiter.admit(reserved)
        let_in.append((loop.time(), number))
        await asyncio.sleep(1.0)
        limiter.correct(reserved, used)

    async def calls() -> None:
        await asyncio.gather(*(call(number, at) for number, at in enumerate(arrivals)))

    run_in(loop, calls())
    return let_in, loop


@settings(max_examples=40, deadline=None)
@given(
    gaps=st.lists(st.floats(0.001, 5), min_size=1, max_size=60),
    requests=st.none() | st.integers(1, 300),
    tokens=st.none() | st.integers(100, 5_000),
    reserved=st.integers(1, 300),
    share=st.floats(0, 2),
)
def test_calls_are_let_in_in_order_within_both_limits_and_nobody_spins(
    gaps: list[float], requests: int | None, tokens: int | None, reserved: int, share: float
) -> None:
    used = int(share * reserved)
    let_in, loop = admitted(list(accumulate(gaps)), requests, tokens, reserved, used)
    assert [number for _, number in let_in] == list(range(len(gaps)))
    times = [at for at, _ in let_in]
    if requests is not None:
        assert most_in_a_minute([(at, 1) for at in times]) <= requests
    if tokens is not None:
        under_way = max(sum(1 for at in times if start <= at <= start + 1.0) for start in times)
        not_known_yet = under_way * abs(reserved - used)  # what is corrected comes a second late
        assert most_in_a_minute([(at, used) for at in times]) <= tokens + reserved + not_known_yet
    assert loop.turns <= 20 * len(gaps) + 50


@pytest.mark.parametrize(("requests", "tokens"), [(600, None), (None, 6_000)])
def test_the_limits_are_used_up(requests: int | None, tokens: int | None) -> None:
    let_in, _ = admitted([0.0] * 3_000, requests, tokens, 10, 10)
    seconds = let_in[-1][0] - let_in[0][0]
    assert 2_980 / seconds * 60 == pytest.approx(600, rel=0.03)


def test_estimates_that_are_too_high_cost_no_throughput() -> None:
    let_in, _ = admitted([0.0] * 2_000, None, 6_000, 100, 10)
    seconds = let_in[-1][0] - let_in[0][0]
    assert 1_990 / seconds * 60 == pytest.approx(590, rel=0.1)  # the first ten seconds or so are slower


def test_without_limits_nobody_waits() -> None:
    let_in, _ = admitted([0.0] * 100, None, None, 10, 10)
    assert {at for at, _ in let_in} == {1000.0}


def test_a_hold_is_for_all_and_the_longest_counts() -> None:
    loop = FakeTimeLoop()
    limiter = RateLimiter(clock=loop.time)
    times: list[float] = []

    async def call() -> None:
        await limiter.admit(1)
        times.append(loop.time())

    async def calls() -> None:
        await call()
        limiter.hold(5.0)
        limiter.hold(2.0)
        waiting = [asyncio.create_task(call()) for _ in range(3)]
        await asyncio.sleep(4.0)
        limiter.hold(3.0)  # the first timer finds that it came too early
        await asyncio.gather(*waiting)

    run_in(loop, calls())
    assert times == pytest.approx([1000.0, 1007.0, 1007.0, 1007.0])


def test_who_is_cancelled_gives_its_place_away() -> None:
    loop = FakeTimeLoop()
    limiter = RateLimiter(requests_per_minute=60, clock=loop.time)
    times: dict[str, float] = {}

    async def call(name: str) -> None:
        await limiter.admit(1)
        times[name] = loop.time()

    async def calls() -> None:
        tasks = {name: asyncio.create_task(call(name)) for name in "abcde"}
        await asyncio.sleep(0.5)
        tasks["b"].cancel()
        tasks["d"].cancel()
        await asyncio.wait(tasks.values())

    run_in(loop, calls())
    assert times == pytest.approx({"a": 1000.0, "c": 1001.0, "e": 1002.0})


def test_who_is_cancelled_on_its_way_in_takes_nothing() -> None:
    loop = FakeTimeLoop()
    limiter = RateLimiter(requests_per_minute=60, clock=loop.time)

    async def calls() -> float:
        await limiter.admit(1)
        second = asyncio.create_task(limiter.admit(1))
        await asyncio.sleep(0)
        loop.call_at(1001.0005, second.cancel)  # in the same turn of the loop as its timer, and after it
        loop.now = 1001.001
        await asyncio.wait([second])
        assert second.cancelled()
        before = loop.time()
        await limiter.admit(1)
        return loop.time() - before

    assert run_in(loop, calls()) < 0.01
