"""Rate limits and a budget that several processes keep together: one process counts for all of them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from retro.actors.budget import Budget
from retro.config import BudgetSection
from retro.types import Usage
from retro.wire.limits import RateLimiter

Call = tuple[str, int]
"""A request: the name of its actor, and its number in its process."""


class Counter(Protocol):
    """The connection of a process to the :class:`LimitCounter` of all processes."""

    async def begin(self, call: Call, estimate: Usage) -> Exception | None:
        """Wait until the request may start. The error says why it never may."""
        ...

    def end(self, call: Call, used: Usage) -> None:
        """Say what a request has used that began, or that need not begin any more."""
        ...

    def hold(self, actor: str, seconds: float) -> None:
        """Let no process start a request for so long."""
        ...


class SharedLimits:
    """The limits of one actor in one of several processes: a :class:`~retro.wire.client.Limiter`, and what counts the
    costs (:class:`~retro.wire.client.Spending`), in one object.

    Args:
        actor: The name that the actor has in every process.
        counter: Counts for all processes.
    """

    def __init__(self, actor: str, counter: Counter) -> None:
        self._actor = actor
        self._counter = counter
        self._numbers = count()
        self._begun: defaultdict[Usage, list[Call]] = defaultdict(list)

    async def reserve(self, estimate: Usage) -> None:
        """Wait until the budget and the rate limits allow a request.

        Raises:
            BudgetExceededError: if the budget is spent.
        """
        call = (self._actor, next(self._numbers))
        try:
            error = await self._counter.begin(call, estimate)
        except asyncio.CancelledError:
            self._counter.end(call, Usage())
            raise
        if error is not None:
            raise error
        self._begun[estimate].append(call)

    def settle(self, estimate: Usage, used: Usage) -> None:
        calls = self._begun[estimate]  # equal estimates are interchangeable
        self._counter.end(calls.pop(), used)
        if not calls:
            del self._begun[estimate]

    async def admit(self, tokens: int) -> None:
        """Nothing: :meth:`reserve` has waited."""

    def correct(self, reserved: int, used: int) -> None:
        """Nothing: :meth:`settle` says what was used."""

    def hold(self, seconds: float) -> None:
        self._counter.hold(self._actor, seconds)

    def keep(self) -> None:
        """Nothing: the counter keeps the ledger."""


@dataclass(frozen=True, slots=True)
class _Begun:
    estimate: Usage
    admitted: asyncio.Task[None]


class LimitCounter:
    """Keeps the limits of every actor for all workers. It is used from one event loop.

    Args:
        ledger: See :class:`~retro.actors.budget.Budget`.
        clock: Monotonic time in seconds.
    """

    def __init__(self, ledger: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._limits: dict[str, tuple[Budget, RateLimiter]] = {}
        self._begun: defaultdict[str, dict[Call, _Begun]] = defaultdict(dict)
        self._gone: set[str] = set()

    def open(
        self, actor: str, requests_per_minute: int | None, tokens_per_minute: int | None, budget: BudgetSection
    ) -> None:
        """Keep the limits of an actor, once, whoever else opens them.

        Raises:
            ConfigError: for a ledger that cannot be read.
        """
        if actor not in self._limits:
            limiter = RateLimiter(requests_per_minute, tokens_per_minute, self._clock)
            self._limits[actor] = (Budget(budget, self._ledger), limiter)

    async def begin(self, worker: str, call: Call, estimate: Usage) -> Exception | None:
        """Wait until a worker's request may start. Returns the error if the budget is spent."""
        if worker in self._gone:
            return None
        admitted = asyncio.get_running_loop().create_task(self._admit(call[0], estimate))
        self._begun[worker][call] = _Begun(estimate, admitted)
        await asyncio.wait([admitted])
        error = None if admitted.cancelled() else admitted.exception()
        if error is not None:
            self._begun[worker].pop(call, None)
        return error if isinstance(error, Exception) else None

    def end(self, worker: str, call: Call, used: Usage) -> None:
        """Free what was reserved for a request, and charge what it used; it does not start if it still waits."""
        begun = self._begun[worker].pop(call, None)
        if begun is None or begun.admitted.cancel() or begun.admitted.exception() is not None:
            return
        budget, limiter = self._limits[call[0]]
        if used.total:
            limiter.correct(begun.estimate.total, used.total)
        budget.settle(begun.estimate, used)

    def hold(self, actor: str, seconds: float) -> None:
        self._limits[actor][1].hold(seconds)

    def forget(self, worker: str) -> None:
        """Free what was reserved for a worker that has died. What its last requests cost is not known."""
        self._gone.add(worker)
        for call in list(self._begun[worker]):
            self.end(worker, call, Usage())

    def keep(self) -> None:
        """Write to the ledger what was spent."""
        for budget, _ in self._limits.values():
            budget.keep()

    async def _admit(self, actor: str, estimate: Usage) -> None:
        budget, limiter = self._limits[actor]
        await budget.reserve(estimate)
        try:
            await limiter.admit(estimate.total)
        except asyncio.CancelledError:
            budget.settle(estimate)
            raise
