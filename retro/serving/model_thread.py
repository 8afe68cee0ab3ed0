"""The model in a thread of its own, so that the server answers while it computes."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from retro.types import Episode

if TYPE_CHECKING:
    from retro.agent.model import Reflected, RetrospectiveModel


class ModelThread:
    """Runs a model's event loop in a thread.

    The model batches what is asked before its loop comes to rest. While it computes a batch, further requests collect
    in the loop, and become the next batch.
    """

    def __init__(self, model: RetrospectiveModel) -> None:
        self._model = model
        self._loop = asyncio.new_event_loop()
        self.abandoned = 0
        """Requests whose callers are gone, which the loop drops after its batch."""
        self._thread = threading.Thread(target=self._run, name="retrospective model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def reflect(
        self, episode: Episode, n: int, memory: tuple[str, ...] | None, seed: int
    ) -> tuple[Episode, Reflected]:
        """:meth:`retro.agent.model.RetrospectiveModel.reflect_async`, and the episode as the model read it. If the
        caller is cancelled, a request whose batch has not begun is dropped."""
        answer = asyncio.run_coroutine_threadsafe(self._reflect(episode, n, memory, seed), self._loop)
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            self.abandoned += 1
            here = asyncio.get_running_loop()
            self._loop.call_soon_threadsafe(here.call_soon_threadsafe, self._dropped)
            raise

    async def _reflect(
        self, episode: Episode, n: int, memory: tuple[str, ...] | None, seed: int
    ) -> tuple[Episode, Reflected]:
        read = self._model.read(episode, memory)
        return read, await self._model.reflect_async(read, n, seed=seed)

    def _dropped(self) -> None:
        self.abandoned -= 1

    def close(self) -> None:
        """End the thread after its batch."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
