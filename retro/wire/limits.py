"""Rate limits: requests and tokens per minute, and waits that the server asks for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_MINUTE = 60.0
_BURST_SECONDS = 1.0
"""How much may start at once after a pause, in seconds of the rate. Servers that count in shorter spans than a minute
would refuse more."""
_TIMER_SECONDS = 0.001
"""The shortest sleep; shorter timers would keep the processor busy."""


class Bucket:
    """A token bucket: it is refilled at a steady rate; an amount larger than its size takes its level below zero.

    In any 60 seconds (without the last instant) at most ``per_minute`` is taken, plus the part of the latest amount
    that exceeds the bucket's size, plus what was put back within them.

    Args:
        per_minute: How much may be taken in a minute.
        now: The clock's time in seconds.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self._size = max(1.0, per_minute * _BURST_SECONDS / _MINUTE)
        self._rate = (per_minute + 1 - self._size) / _MINUTE  # size + a minute's refill stays below per_minute + 1
        self._level = self._size
        self._filled = now

    def pause(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be taken, 0 if that is now."""
        self._fill(now)
        return max(0.0, (min(amount, self._size) - self._level) / self._rate)

    def take(self, amount: float, now: float) -> None:
        """Take ``amount``. A negative one is put back, even above the bucket's size, since others had to do without."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        filled = min(self._size, self._level + max(0.0, now - self._filled) * self._rate)
        self._level = max(self._level, filled)
        self._filled = max(self._filled, now)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    tokens: int
    admitted: asyncio.Future[None]


class RateLimiter:
    """Lets requests start in the order in which they ask, as fast as the limits allow.

    Args:
        requests_per_minute: None means no limit.
        tokens_per_minute: Prompt and completion together; None means no limit.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._requests = Bucket(requests_per_minute, clock()) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock()) if tokens_per_minute else None
        self._not_before = float("-inf")
        self._queue: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def admit(self, tokens: int) -> None:
        """Wait until a request of about ``tokens`` tokens may start, and count it as started."""
        now = self._clock()
        if not self._queue and self._pause(tokens, now) <= 0:
            self._take(1, tokens, now)
            return
        waiting = _Waiting(tokens, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._admit_waiting()
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            if not waiting.admitted.cancelled():  # it was admitted, but will not start
                self._take(-1, -tokens, self._clock())
            self._admit_waiting()
            raise

    def correct(self, reserved: int, used: int) -> None:
        """Count ``used`` tokens instead of ``reserved``."""
        if self._tokens and reserved != used:
            self._tokens.take(used - reserved, self._clock())
            if self._queue:
                self._admit_waiting()

    def hold(self, seconds: float) -> None:
        """Start no request for so long, since the server asks every caller to wait."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def _pause(self, tokens: int, now: float) -> float:
        pause = self._not_before - now
        if self._requests:
            pause = max(pause, self._requests.pause(1, now))
        if self._tokens:
            pause = max(pause, self._tokens.pause(tokens, now))
        return pause

    def _take(self, requests: int, tokens: int, now: float) -> None:
        if self._requests:
            self._requests.take(requests, now)
        if self._tokens:
            self._tokens.take(tokens, now)

    def _admit_waiting(self) -> None:
        """Admit requests from the head of the queue that may start now, and set a timer for the next one."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            head, now = self._queue[0], self._clock()
            if head.admitted.cancelled():
                self._queue.popleft()
                continue
            pause = self._pause(head.tokens, now)
            if pause > 0:
                loop = head.admitted.get_loop()
                self._timer = loop.call_later(max(pause, _TIMER_SECONDS), self._admit_waiting)
                return
            self._queue.popleft()
            self._take(1, head.tokens, now)
            head.admitted.set_result(None)
