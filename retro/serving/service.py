"""Answers requests for reflections, whatever protocol they came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from retro.agent.documents import TrajectoryError, read_trajectory
from retro.buffer.messages import MessagesError, without_messages
from retro.config import ConfigError
from retro.prompts import PromptTooLongError
from retro.retrospective.samplers.best_of import best, spent
from retro.retrospective.served import ModelServerError
from retro.serving.bodies import OutcomeBody
from retro.serving.failures import RequestError
from retro.serving.limits import Admission, Limits
from retro.serving.model_thread import ModelThread
from retro.serving.recorder import Outcome, Recorder
from retro.ties import exceeds
from retro.types import Episode, Reflection, Trajectory, Usage
from retro.wire.failures import QuotaError

if TYPE_CHECKING:
    from retro.agent.model import Reflected, RetrospectiveModel


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote, and the tokens of all candidates; their shared prompt counts once."""

    reflected: Reflected
    usage: Usage
    ids: tuple[str, ...] = ()
    """With which outcomes of the candidates are reported, in their order; empty if they were not recorded."""

    @property
    def id(self) -> str | None:
        """The id of the text, if it was recorded."""
        return self.ids[self.reflected.candidates.index(self._best)] if self.ids else None

    @property
    def finish_reason(self) -> str:
        """Why the text ended: ``stop`` or ``length``."""
        return self._best.finish_reason

    @property
    def usage_json(self) -> dict[str, int]:
        """The usage in OpenAI's words."""
        usage = self.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total,
        }

    @property
    def _best(self) -> Reflection:
        return best(self.reflected.candidates)


class Service:
    """A model behind a server's limits.

    Args:
        model: Its reflections are drawn in a thread, which :meth:`close` ends.
        name: What clients call it.
        limits: See :class:`~retro.serving.limits.Limits`.
        candidates: Reflections that are drawn if a request does not say how many.
        max_tokens: The length of the longest reflection that the model writes.
        recorder: Stores what is reflected on and reported; :meth:`close` closes it. None: no outcomes can be reported.
    """

    def __init__(
        self,
        model: RetrospectiveModel,
        name: str,
        limits: Limits,
        candidates: int = 8,
        max_tokens: int = 128,
        recorder: Recorder | None = None,
    ) -> None:
        self.name = name
        self.limits = limits
        self.max_tokens = max_tokens
        self.started = int(time.time())
        self.admission = Admission(limits)
        self._chooses = model.has_reward_model
        self._candidates = candidates
        self._thread = ModelThread(model)
        self._recorder = recorder
        self._reports = Admission(limits)

    @property
    def ready(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.alive

    @property
    def records(self) -> bool:
        """Whether outcomes can be reported."""
        return self._recorder is not None

    def close(self) -> None:
        self._thread.close()
        if self._recorder is not None:
            self._recorder.close()

    async def reflect(
        self, trajectory: Trajectory | Mapping[str, Any] | Sequence[Any], n: int | None, seed: int, record: bool = True
    ) -> Answer:
        """The best of ``n`` reflections.

        Args:
            trajectory: A trajectory, its JSON, or a list of messages (:mod:`retro.buffer.messages`).
            n: None means the server's default.
            seed: See :meth:`retro.agent.model.RetrospectiveModel.reflect`.
            record: Whether to store them with the attempt, if it failed and there is a recorder.

        Raises:
            RequestError: 422 for a trajectory or an ``n`` that cannot be answered, 429 if too many requests wait, 502
                if another server has the model and gives no reflection, 503 if the buffer cannot be written, 504 after
                ``limits.seconds``.
        """
        count = self._count(n)
        try:
            document = trajectory if isinstance(trajectory, Trajectory) else without_messages(trajectory)
            episode, memory = read_trajectory(document)
            recorder = self._recorder if record and episode.failed else None
            if recorder is not None and not 0 <= episode.return_ <= 1:
                raise TrajectoryError("not a trajectory that can be recorded: its return must be in [0, 1]")
            if self._thread.abandoned > self.limits.waiting:  # they have left their slots, and not the memory
                raise self.admission.refusal()
            async with asyncio.timeout(self.limits.seconds), self.admission.slot():
                read, reflected = await self._thread.reflect(episode, count, memory, seed)
                answer = Answer(reflected, spent(reflected.candidates))
                if recorder is None:
                    return answer
                split = read.task.split if _names_split(document) else None
                ids = await recorder.keep(read, split, len(memory or ()), reflected.candidates)
                return replace(answer, ids=tuple(ids))
        except (MessagesError, TrajectoryError) as error:
            raise RequestError(422, "invalid_trajectory", f"{error}.") from None
        except PromptTooLongError as error:
            raise RequestError(422, "trajectory_too_long", f"{error}.") from None
        except (ModelServerError, QuotaError):  # the message names an address, and may quote what was sent there
            message = "The server that has the model gave no reflection; send this request again later."
            raise RequestError(502, "model_server_failed", message) from None
        except ConfigError:  # its message names files of this machine
            raise RequestError(
                422, "unknown_prompts", "The prompts of this model cannot put this trajectory into words."
            ) from None
        except TimeoutError:
            raise self._timeout("reflection") from None

    async def report(self, body: OutcomeBody) -> Episode:
        """Record the outcome of a reflection; return the retry as it is in the buffer.

        Raises:
            RequestError: 404 without a recorder or for an unknown reflection, 409 if another outcome was reported, 422
                for a trajectory that cannot be read; 429, 503 and 504 as in :meth:`reflect`.
        """
        if self._recorder is None:
            message = "This server records no outcomes: it was started without --buffer."
            raise RequestError(404, "no_buffer", message)
        try:
            outcome = _outcome(body)
            async with asyncio.timeout(self.limits.seconds), self._reports.slot():
                return await self._recorder.report(outcome)
        except (MessagesError, TrajectoryError) as error:
            raise RequestError(422, "invalid_trajectory", f"{error}.") from None
        except TimeoutError:
            raise self._timeout("report") from None

    def _timeout(self, what: str) -> RequestError:
        message = f"The {what} took longer than {self.limits.seconds:g} s, the limit of this server."
        return RequestError(504, "timeout", message)

    def _count(self, n: int | None) -> int:
        if n is None:
            return self._candidates if self._chooses else 1
        if n > self.limits.candidates:
            raise RequestError(
                422, "too_many_candidates", f"n is {n}; this server draws at most {self.limits.candidates} candidates."
            )
        if n > 1 and not self._chooses:
            raise RequestError(
                422, "no_reward_model", "This model has no reward model to choose between candidates: n must be 1."
            )
        return n


def outcome_json(retry: Episode) -> dict[str, Any]:
    """What a report is answered with."""
    return {"episode_id": retry.id, "return": retry.return_, "success": retry.success}


def _names_split(document: Trajectory | Mapping[str, Any]) -> bool:
    """Whether a document that could be read says which split its task belongs to."""
    return isinstance(document, Mapping) and (bool(document.get("split")) or isinstance(document.get("task"), Mapping))


def _outcome(body: OutcomeBody) -> Outcome:
    return_ = float(bool(body.success)) if body.return_ is None else body.return_
    success = not exceeds(1, return_) if body.success is None else body.success
    trajectory = Trajectory("")
    if body.trajectory is not None:
        document = without_messages(body.trajectory)
        if strange := document.keys() - {"opening", "steps", "trajectory"}:
            raise TrajectoryError(f"trajectory: {', '.join(sorted(map(str, strange)))}: only what was seen and done")
        trajectory = read_trajectory(document)[0].trajectory
    return Outcome(body.reflection_id, return_, success, trajectory)
