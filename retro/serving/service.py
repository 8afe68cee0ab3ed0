"""Answers requests for reflections, whatever protocol they came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retro.agent.documents import TrajectoryError, read_trajectory
from retro.buffer.messages import MessagesError, without_messages
from retro.config import ConfigError
from retro.prompts import PromptTooLongError
from retro.retrospective.samplers.best_of import best, spent
from retro.serving.failures import RequestError
from retro.serving.limits import Admission, Limits
from retro.serving.model_thread import ModelThread
from retro.types import Trajectory, Usage

if TYPE_CHECKING:
    from retro.agent.model import Reflected, RetrospectiveModel


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote, and the tokens of all candidates; their shared prompt counts once."""

    reflected: Reflected
    usage: Usage

    @property
    def finish_reason(self) -> str:
        """Why the text ended: ``stop`` or ``length``."""
        return best(self.reflected.candidates).finish_reason

    @property
    def usage_json(self) -> dict[str, int]:
        """The usage in OpenAI's words."""
        usage = self.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total,
        }


class Service:
    """A model behind a server's limits.

    Args:
        model: Its reflections are drawn in a thread, which :meth:`close` ends.
        name: What clients call it.
        limits: See :class:`~retro.serving.limits.Limits`.
        candidates: Reflections that are drawn if a request does not say how many.
        max_tokens: The length of the longest reflection that the model writes.
    """

    def __init__(
        self, model: RetrospectiveModel, name: str, limits: Limits, candidates: int = 8, max_tokens: int = 128
    ) -> None:
        self.name = name
        self.limits = limits
        self.max_tokens = max_tokens
        self.started = int(time.time())
        self.admission = Admission(limits)
        self._chooses = model.has_reward_model
        self._candidates = candidates
        self._thread = ModelThread(model)

    @property
    def ready(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.alive

    def close(self) -> None:
        self._thread.close()

    async def reflect(
        self, trajectory: Trajectory | Mapping[str, Any] | Sequence[Any], n: int | None, seed: int
    ) -> Answer:
        """The best of ``n`` reflections.

        Args:
            trajectory: A trajectory, its JSON, or a list of messages (:mod:`retro.buffer.messages`).
            n: None means the server's default.
            seed: See :meth:`retro.agent.model.RetrospectiveModel.reflect`.

        Raises:
            RequestError: 422 for a trajectory or an ``n`` that cannot be answered, 429 if too many requests wait, 504
                after ``limits.seconds``.
        """
        count = self._count(n)
        try:
            episode, memory = read_trajectory(
                trajectory if isinstance(trajectory, Trajectory) else without_messages(trajectory)
            )
            if self._thread.abandoned > self.limits.waiting:  # they have left their slots, and not the memory
                raise self.admission.refusal()
            async with asyncio.timeout(self.limits.seconds), self.admission.slot():
                reflected = await self._thread.reflect(episode, count, memory, seed)
        except (MessagesError, TrajectoryError) as error:
            raise RequestError(422, "invalid_trajectory", f"{error}.") from None
        except PromptTooLongError as error:
            raise RequestError(422, "trajectory_too_long", f"{error}.") from None
        except ConfigError:  # its message names files of this machine
            raise RequestError(
                422, "unknown_prompts", "The prompts of this model cannot put this trajectory into words."
            ) from None
        except TimeoutError:
            raise RequestError(
                504, "timeout", f"The reflection took longer than {self.limits.seconds:g} s, the limit of this server."
            ) from None
        return Answer(reflected, spent(reflected.candidates))

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
