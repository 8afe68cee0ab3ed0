"""Writes what was reflected on, and what came of it, into a replay buffer."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from retro.buffer.engine import EpisodeRefusedError, ReplayBufferError, UnstorableError
from retro.buffer.message_logs import task_id
from retro.buffer.recalled import WINDOW, Derivation
from retro.buffer.schema import content_digest
from retro.buffer.splits import SplitRule
from retro.buffer.store import ReplayBuffer
from retro.serving.failures import RequestError
from retro.types import Episode, Reflection, Split, StopReason, Task, Trajectory, to_json

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_ID = re.compile("([0-9a-f]{32})-[0-9a-f]{12}")
"""The id of a reflection for clients: the one in the buffer, and a random suffix."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a reflection, as a client reports it."""

    reflection: str
    """The id with which the reflection was sent."""
    return_: float
    success: bool
    trajectory: Trajectory | None
    """Of the retry; None if the client did not send it."""


class Recorder:
    """Keeps failed attempts, the reflections on them, and their retries.

    The id that a client gets for a reflection is the one in the buffer, which names its content, and a random suffix:
    two requests that draw the same text may each report an outcome. Nothing about it is in the process alone, so ids
    stay valid when the server is started again.

    Args:
        buffer: Is written in a thread, one transaction after another, which :meth:`close` ends.
        environment: Of trajectories that name none.
        source: The ``source`` of the reflections: what clients call the model.
    """

    def __init__(self, buffer: ReplayBuffer, environment: str, source: str) -> None:
        self._buffer = buffer
        self._environment = environment
        self._source = source
        self._rule = SplitRule()
        self._thread = ThreadPoolExecutor(1, "replay buffer")

    async def keep(
        self, attempt: Episode, split: Split | None, earlier: int, written: Sequence[Reflection]
    ) -> list[str]:
        """Store a failed attempt as the root of a tree, with the reflections on it; return their ids once they are
        committed.

        Args:
            split: Of its task, if the client said so; otherwise the buffer's, or by the rule for imports.
            earlier: How many reflections on this task led to it: the number of its trial, unless it has one.

        Raises:
            RequestError: if the buffer cannot take it.
        """
        return await self._run(self._keep, attempt, split, earlier, written)

    async def keep_on(self, retry: Episode, written: Sequence[Reflection]) -> list[str]:
        """Store the reflections on a retry that :meth:`report` returned; return their ids once they are committed.

        Raises:
            RequestError: if the buffer cannot take them.
        """
        return await self._run(self._store, retry, written)

    async def report(self, outcome: Outcome) -> Episode:
        """Store the retry after a reflection; return it once it is committed. Again the same changes nothing, also
        without the trajectory.

        Raises:
            RequestError: 404 for an id that the buffer does not have, 409 if another outcome has been reported, also if
                that was the same one without its trajectory.
        """
        return await self._run(self._report, outcome)

    def close(self) -> None:
        """Finish what was begun."""
        self._thread.shutdown()

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))
        except (EpisodeRefusedError, UnstorableError, OverflowError) as error:
            raise RequestError(422, "unstorable", f"It cannot be recorded: {error}.") from None
        except ReplayBufferError as error:
            logger.exception("replay buffer failed")
            message = "The replay buffer of this server cannot be written or read; send this again later."
            raise RequestError(503, "buffer_unavailable", message) from error

    def _keep(self, attempt: Episode, split: Split | None, earlier: int, written: Sequence[Reflection]) -> list[str]:
        root = replace(attempt, id="", task=self._task(attempt, split), trial=attempt.trial or earlier)
        root = replace(root, parent=None, reflection=None)
        root = replace(root, id=content_digest(["served", to_json(root)]))
        return self._store(root, written)

    def _store(self, attempt: Episode, written: Sequence[Reflection]) -> list[str]:
        named = [replace(reflection, source=self._source) for reflection in written]
        return [f"{id}-{secrets.token_hex(6)}" for id in self._buffer.add_reflections(attempt, named)]

    def _task(self, attempt: Episode, split: Split | None) -> Task:
        environment = attempt.task.environment or self._environment
        id = task_id(attempt.task.id or attempt.trajectory.opening)
        known = self._buffer.task(environment, id)
        if known is not None and split in (None, known.split):
            return known
        return Task(environment, id, split or self._rule.split(environment, id), attempt.task.kind)

    def _report(self, outcome: Outcome) -> Episode:
        id = _ID.fullmatch(outcome.reflection)
        found = None if id is None else self._buffer.reflection(id[1])
        failed = None if found is None else self._buffer.get(found[0])
        if found is None or failed is None:
            message = "Unknown reflection_id: this server did not write a reflection with this id."
            raise RequestError(404, "unknown_reflection", message)
        retry = Episode(
            id=content_digest(["outcome", outcome.reflection]),
            task=failed.task,
            trial=failed.trial + 1,
            trajectory=outcome.trajectory or Trajectory(""),
            return_=outcome.return_,
            success=outcome.success,
            stop=StopReason.SUCCESS if outcome.success else StopReason.FAILURE,
            parent=failed.id,
            reflection=found[1],
        )
        retry = Derivation(WINDOW, self._buffer.get)(retry)
        try:
            self._buffer.add(retry)
        except EpisodeRefusedError:
            stored = self._buffer.get(retry.id)
            if stored is None:
                raise
            same = (stored.return_, stored.success) == (retry.return_, retry.success)
            if same and outcome.trajectory is None:
                return stored
            message = "Another outcome of this reflection has been reported, and an outcome does not change."
            if same and stored.trajectory == Trajectory(""):
                message = (
                    "The outcome of this reflection has been reported without its trajectory, and an outcome does not "
                    "change. For a reflection on this attempt, ask without reflection_id; the next time, report with "
                    "the trajectory, or ask instead of reporting."
                )
            raise RequestError(409, "outcome_exists", message) from None
        return retry
