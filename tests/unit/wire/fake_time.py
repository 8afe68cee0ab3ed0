"""An event loop whose clock jumps to the next timer: what waits for minutes is tested in no time, and exactly."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """``time()`` is what has been slept, from 1000 on; ``turns`` counts the loop's turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.turns = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: FakeTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.turns += 1
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will wake it")
        self._loop.now += timeout
        return super().select(0)


def run_in(loop: FakeTimeLoop, awaitable: Awaitable[T]) -> T:
    """Run to the end, and close the loop."""

    async def awaited() -> T:
        return await awaitable

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(awaited())
