"""What one request may take, and how many requests may be under way."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from retro.serving.failures import RequestError

_RETRY_SECONDS = 60
"""The longest ``Retry-After``."""
_WEIGHT = 0.2
"""Of the last request in the running mean of durations."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server."""

    body_bytes: int = 2**20
    """The longest body."""
    candidates: int = 32
    """The most reflections that one request draws."""
    active: int = 16
    """Requests that the model works on at once; those that arrive together are one batch."""
    waiting: int = 64
    """Requests that wait for one of them to end; one more is refused with status 429."""
    seconds: float = 300.0
    """From the end of a request's body to its answer; after that, its status is 504."""


class Admission:
    """Lets ``limits.active`` requests in and ``limits.waiting`` wait, first come, first served."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.active)
        self._seconds = 1.0
        self.waiting = 0
        self.active = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it.

        Raises:
            RequestError: with ``Retry-After``, if as many requests wait as may.
        """
        if self._slots.locked() and self.waiting >= self._limits.waiting:
            raise self.refusal()
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.active += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.active -= 1
            self._slots.release()
            self._seconds += _WEIGHT * (time.monotonic() - started - self._seconds)

    def refusal(self) -> RequestError:
        """The error of a request that comes when all slots and the queue are taken."""
        seconds = self._retry_seconds()
        message = f"The server has as many requests as it takes; send this one again in {seconds} s."
        return RequestError(429, "too_many_requests", message, {"Retry-After": str(seconds)})

    def _retry_seconds(self) -> int:
        """About how long it takes until the queue is empty, if requests go on to last as long as they do."""
        rounds = 1 + self.waiting / self._limits.active
        return min(max(math.ceil(rounds * self._seconds), 1), _RETRY_SECONDS)
