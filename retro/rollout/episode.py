"""One play of a task: the actor is asked, the environment answers, until it ends."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

from retro.envs.base import TaskSet
from retro.memory.base import Memory
from retro.prompts import PromptSet
from retro.types import (
    Actor,
    ActorError,
    Episode,
    Reflection,
    Sampling,
    Step,
    StopReason,
    Task,
    Trajectory,
    Usage,
    derive_seed,
)


@dataclass(frozen=True, slots=True)
class Player:
    """Who plays: a frozen actor with its prompts, its memory and its way of sampling.

    Two players with equal parts play equal episodes, whatever else is under way: every draw is seeded by ``key``, the
    task, the trial, the parent, the index and the step.
    """

    taskset: TaskSet
    actor: Actor
    prompts: PromptSet
    memory: Memory
    sampling: Sampling
    """Temperature, top_p and max_tokens; seed, session and stop are set for every call."""
    key: tuple[str | int, ...]
    """Names this use, for example (run seed, "collect"). Episodes of different keys are different episodes."""

    def episode_id(
        self, task: Task, trial: int = 0, parent: str | None = None, index: int = 0, control: bool = False
    ) -> str:
        """The id that :meth:`play` gives, known before it is played: 32 hex digits."""
        name = json.dumps([self.key, task.environment, task.id, trial, parent, index, control])
        return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()

    async def play(
        self,
        task: Task,
        trial: int = 0,
        reflections: tuple[Reflection, ...] = (),
        parent: str | None = None,
        index: int = 0,
        control: bool = False,
    ) -> Episode:
        """Play ``task`` once, to its end.

        Args:
            task: What to play. Its environment is rebuilt, and is the same for every play of it.
            trial: The number of the attempt, from 0.
            reflections: All reflections on the way to this trial, oldest first. The last one preceded this retry,
                unless it is a ``control``.
            parent: The id of the failed episode that this one retries.
            index: Its place among the retries (or among the controls) of ``parent``.
            control: A retry without a reflection of its own.

        Returns:
            The episode. If the actor failed for good, what was played until then, with ``StopReason.ACTOR_ERROR`` and
            the error's text in ``info["error"]``.
        """
        identity = self.episode_id(task, trial, parent, index, control)
        draw = (*self.key, task.id, trial, parent or "", index)
        memory = self.memory.recall([reflection.text for reflection in reflections])
        environment = self.taskset.make(task)
        opening, _ = environment.reset(seed=derive_seed(task.environment, task.id))
        steps: list[Step] = []
        usage = Usage()
        stop: StopReason | None = None
        info: dict[str, Any] = {}
        while stop is None:
            sampling = replace(
                self.sampling, seed=derive_seed(*draw, len(steps)), session=identity, stop=self.prompts.actor_stop
            )
            try:
                completion = await self.actor.complete(self.prompts.actor(opening, steps, memory), sampling)
            except ActorError as error:
                stop, info = StopReason.ACTOR_ERROR, {"error": str(error)}
                break
            usage += completion.usage
            thought, action = self.prompts.parse(completion.text)
            observation, reward, terminated, truncated, answer = environment.step(action)
            steps.append(Step(action=action, observation=observation, reward=reward, thought=thought))
            if terminated or truncated:
                stop = _stop_reason(bool(answer["success"]), terminated)
        return Episode(
            id=identity,
            task=task,
            trial=trial,
            trajectory=Trajectory(opening, tuple(steps)),
            return_=fsum(step.reward for step in steps),
            success=stop is StopReason.SUCCESS,
            stop=stop,
            parent=parent,
            reflection=reflections[-1] if reflections and not control else None,
            seed=derive_seed(*draw),
            usage=usage,
            info=info,
        )


def _stop_reason(success: bool, terminated: bool) -> StopReason:
    if success:
        return StopReason.SUCCESS
    return StopReason.FAILURE if terminated else StopReason.HORIZON
