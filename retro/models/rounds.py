"""Concurrent requests: batched deterministically once every coroutine waits, or awaited all together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_QUIET_PASSES = 16
"""Passes of the event loop without a new request after which every coroutine is taken to wait. A coroutine may need a
few passes from one request to its next (a lock, a nested await); one pass costs microseconds."""


class Rounds(Generic[T, R]):
    """Collects what concurrent coroutines ask, and answers it as one batch.

    A batch holds all requests that were made before the event loop came to rest, in the order in which they were made:
    no timer and no thread decides it, so the same program forms the same batches.

    Args:
        run: answers a batch, one result an item, in order; None for an item that has to wait, which is part of the
            next batch. A batch without any answer is the last one until something is asked, or :meth:`again`. It runs
            in the event loop's thread. What it raises reaches every caller of the batch.
    """

    def __init__(self, run: Callable[[list[T]], Sequence[R | None]]) -> None:
        self._run = run
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._settling = False

    async def submit(self, item: T) -> R:
        """The answer to ``item``, together with everything else that is asked meanwhile."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # an earlier event loop may have been stopped before its round
            self._loop = loop
            self._waiting, self._settling = [], False
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        self.again()
        return await future

    def again(self) -> None:
        """Begin a round for the items that wait, if there are any: what they wait for may be there."""
        if self._waiting and not self._settling and self._loop is not None and not self._loop.is_closed():
            self._settling = True
            self._loop.call_soon(self._settle, self._loop, len(self._waiting), _QUIET_PASSES)

    def _settle(self, loop: asyncio.AbstractEventLoop, seen: int, passes: int) -> None:
        if loop is not self._loop:
            return
        if len(self._waiting) > seen:
            passes = _QUIET_PASSES
        if passes:
            loop.call_soon(self._settle, loop, len(self._waiting), passes - 1)
        else:
            self._settling = False
            self._answer()

    def _answer(self) -> None:
        batch = [
            (item, future) for item, future in self._waiting if not future.done()
        ]  # done: its caller was cancelled
        self._waiting = []
        if not batch:
            return
        try:
            results = self._run([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (item, future), result in zip(batch, results, strict=True):
            if result is None:
                self._waiting.append((item, future))
            else:
                future.set_result(result)
        if len(self._waiting) < len(batch):  # who was answered may have been what the others wait for
            self.again()


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all concurrently; results in order. The first exception cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, also where an event loop is already running (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
