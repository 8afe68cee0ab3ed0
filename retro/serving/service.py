"""Answers requests for reflections, whatever protocol they came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from retro.agent.documents import TrajectoryError, read_trajectory
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
        self,
        trajectory: Trajectory | Mapping[str, Any] | Sequence[Any],
        n: int | None,
        seed: int,
        record: bool = True,
        follows: str | None = None,
    ) -> Answer:
        """The best of ``n`` reflections.

        Args:
            trajectory: A trajectory, its JSON, or a list of messages (:mod:`retro.buffer.messages`).
            n: None means the server's default.
            seed: See :meth:`retro.agent.model.RetrospectiveModel.reflect`.
            record: Whether to store them with the attempt, if it failed and there is a recorder.
            follows: The id of the reflection that the attempt followed. The attempt is then recorded as its outcome
                before the model is asked, and also if it succeeded.

        Raises:
            RequestError: 422 for a trajectory or an ``n`` that cannot be answered, 429 if too many requests wait, 502
                if another server has the model and gives no reflection, 503 if the buffer cannot be written, 504 after
                ``limits.seconds``; with ``follows`` also 404 and 409 as in :meth:`report`.
        """
        count = self._count(n)
        if follows is not None and self._recorder is None:
            raise _no_buffer()
        try:
            episode, memory = read_trajectory(trajectory)
            document = trajectory if isinstance(trajectory, Mapping) else {}
            recorder = self._recorder if record and (episode.failed or follows is not None) else None
            outcome = None
            if recorder is not None:
                _check_recordable(episode, document, follows is not None)
                outcome = None if follows is None else _attempted(follows, episode, document)
            if self._thread.abandoned > self.limits.waiting:  # they have left their slots, and not the memory
                raise self.admission.refusal()
            async with asyncio.timeout(self.limits.seconds), self.admission.slot():
                retry = None if recorder is None or outcome is None else await recorder.report(outcome)
                shown = memory if retry is None else None  # the retry's own: what is stored is what was shown
                read, reflected = await self._thread.reflect(retry or episode, count, shown, seed)
                answer = Answer(reflected, spent(reflected.candidates))
                if recorder is None or not read.failed:
                    return answer
                if retry is None:
                    split = read.task.split if _names_split(document) else None
                    ids = await recorder.keep(read, split, len(memory or ()), reflected.candidates)
                else:
                    ids = await recorder.keep_on(retry, reflected.candidates)
                return replace(answer, ids=tuple(ids))
        except TrajectoryError as error:
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
            raise _no_buffer()
        try:
            outcome = _reported(body)
            async with asyncio.timeout(self.limits.seconds), self._reports.slot():
                return await self._recorder.report(outcome)
        except TrajectoryError as error:
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


def _no_buffer() -> RequestError:
    return RequestError(404, "no_buffer", "This server records no outcomes: it was started without --buffer.")


def _names_split(document: Mapping[str, Any]) -> bool:
    """Whether a document that could be read says which split its task belongs to."""
    return bool(document.get("split")) or isinstance(document.get("task"), Mapping)


def _names_return(document: Mapping[str, Any]) -> bool:
    """Whether a document that could be read says its return, or the rewards that add up to it."""
    steps = (document.get("trajectory") or document).get("steps", ())
    return any(document.get(key) is not None for key in ("return", "return_")) or any("reward" in one for one in steps)


def _check_recordable(episode: Episode, document: Mapping[str, Any], has_task: bool) -> None:
    """Refuse an attempt that would be stored with a wrong rating, or without a task.

    Args:
        has_task: Whether the attempt before it tells the task.

    Raises:
        TrajectoryError: naming the key.
    """
    if not _names_return(document) and document.get("success") is None:
        raise TrajectoryError("the trajectory has no return: say in it how much was achieved, from 0 to 1")
    if not 0 <= episode.return_ <= 1:
        raise TrajectoryError("not a trajectory that can be recorded: its return must be in [0, 1]")
    if not (has_task or episode.trajectory.opening or episode.task.id):
        raise TrajectoryError("not a trajectory that can be recorded: opening is empty, so its task has no name")


def _outcome(reflection: str, return_: float | None, success: bool | None, trajectory: Trajectory | None) -> Outcome:
    """An outcome of which one of return and success may be left out."""
    value = float(bool(success)) if return_ is None else return_
    return Outcome(reflection, value, not exceeds(1, value) if success is None else success, trajectory)


def _attempted(reflection: str, episode: Episode, document: Mapping[str, Any]) -> Outcome:
    """The outcome that an attempt is."""
    if episode.broken:
        raise TrajectoryError("an attempt that an error ended is no outcome: send it without reflection_id")
    return_ = episode.return_ if _names_return(document) else None
    success = None if document.get("success") is None else episode.success
    return _outcome(reflection, return_, success, episode.trajectory)


def _reported(body: OutcomeBody) -> Outcome:
    trajectory = None
    if body.trajectory is not None:
        keys = body.trajectory.keys() if isinstance(body.trajectory, Mapping) else set()
        if strange := keys - {"opening", "steps", "trajectory", "messages"}:
            raise TrajectoryError(f"trajectory: {', '.join(sorted(map(str, strange)))}: only what was seen and done")
        trajectory = read_trajectory(body.trajectory)[0].trajectory
    return _outcome(body.reflection_id, body.return_, body.success, trajectory)
