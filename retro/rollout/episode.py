"""Plays one episode: the actor chooses actions and the environment answers, until the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import fsum
from typing import Any, TypeVar

from retro.envs.base import Environment, EnvironmentFailedError, StepResult, TaskSet
from retro.memory.base import Memory, Query
from retro.prompts import Prompts, PromptTooLongError
from retro.reading import cut, encodable
from retro.rollout.advice import asks, offered, waits
from retro.rollout.attempts import Attempt
from retro.ties import minus
from retro.types import (
    Actor,
    ActorError,
    Episode,
    Recalled,
    Sampling,
    Step,
    StopReason,
    Task,
    TokenLimit,
    Trajectory,
    Usage,
    derive_seed,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Player:
    """A frozen actor with its prompts, its memory and its way of sampling, which plays the tasks of a task set.

    Players with equal parts play equal episodes, whatever else runs at the same time: each draw is seeded by the
    attempt and the step.
    """

    taskset: TaskSet
    actor: Actor
    prompts: Prompts
    memory: Memory
    sampling: Sampling
    """Temperature, top_p and max_tokens; seed, session and stop are set for each request."""

    async def play(self, attempt: Attempt, threads: Executor) -> Episode:
        """Play a task once, to its end, in a new environment, which is the same for every attempt at the task.

        Args:
            attempt: What to play.
            threads: Where an environment that blocks is stepped. It has a thread for each attempt under way: one that
                waits for a free engine must not keep another from its next step.

        Returns:
            The episode. If the actor or the environment failed for good, or the actor's prompt no longer fits its
            context, it ends there, with ``StopReason.ACTOR_ERROR``, ``ENVIRONMENT_ERROR`` or ``CONTEXT`` and the
            error's text in ``info["error"]``. If the actor asks for advice that the attempt allows, it ends with
            ``StopReason.ASKED``, to be played on as the attempt's ``paused``.
        """
        task, identity = attempt.task, attempt.id
        prompts = self.prompts.of(task.environment)
        limit: TokenLimit | None = getattr(self.actor, "prompt_limit", None)
        opening, recalled, usage = "", Recalled(), Usage()
        steps: list[Step] = []
        stop: StopReason | None = None
        info: dict[str, Any] = {"kept_steps": len(attempt.kept)} if attempt.kept else {}
        played = tuple(replace(step, usage=Usage()) for step in attempt.kept)  # they cost the actor nothing
        if attempt.paused is not None:
            played, usage, info = attempt.paused.trajectory.steps, attempt.paused.usage, dict(attempt.paused.info)
        environment = _Played(self.taskset, task, threads)
        try:
            opening = encodable(await environment.reset(derive_seed(task.environment, task.id)))
            shown = offered(opening, attempt.advice)
            await _again(environment, played)
            steps += played
            recalled = prompts.worded(self.memory.recall(Query(task, opening, attempt.path)), opening)
            with self._conversation(identity):
                while stop is None:
                    sampling = replace(
                        self.sampling, seed=attempt.seed(len(steps)), session=identity, stop=prompts.actor_stop
                    )
                    prompt = prompts.actor(shown, steps, recalled.entries, limit)
                    completion = await self.actor.complete(prompt, sampling)
                    usage += completion.usage
                    thought, action = prompts.parse(encodable(completion.text))
                    observation, reward, terminated, truncated, answer = await environment.step(action)
                    steps.append(Step(action, encodable(observation), reward, thought, completion.usage))
                    if terminated or truncated:
                        ending = StopReason.FAILURE if terminated else StopReason.HORIZON
                        stop = StopReason.SUCCESS if answer["success"] else ending
                    elif waits(steps[len(attempt.kept) :], attempt.advice):
                        stop = StopReason.ASKED
        except PromptTooLongError as error:
            stop, info["error"] = StopReason.CONTEXT, encodable(str(error))
        except ActorError as error:
            stop, info["error"] = StopReason.ACTOR_ERROR, encodable(str(error))
        except EnvironmentFailedError as error:
            stop, info["error"] = StopReason.ENVIRONMENT_ERROR, encodable(str(error))
        finally:
            await environment.close()
        return Episode(
            id=identity,
            task=task,
            trial=attempt.trial,
            trajectory=Trajectory(opening, tuple(steps)),
            return_=fsum(step.reward for step in steps),
            success=stop is StopReason.SUCCESS,
            stop=stop,
            parent=attempt.parent,
            reflection=attempt.reflection,
            recalled=recalled,
            seed=attempt.seed(),
            usage=usage,
            info=info,
        )

    def _conversation(self, session: str) -> AbstractContextManager[None]:
        begin: Callable[[str], AbstractContextManager[None]] | None = getattr(self.actor, "conversation", None)
        return nullcontext() if begin is None else begin(session)


async def _again(environment: _Played, played: Sequence[Step]) -> None:
    """Play steps again without asking the actor. Advice is not the environment's answer, so it is not compared."""
    for step in played:
        observation, reward, terminated, truncated, _ = await environment.step(step.action)
        other = encodable(observation) != step.observation and not asks(step)
        if other or minus(reward, step.reward) or terminated or truncated:
            ended = ", at the end" if terminated or truncated else ""
            raise EnvironmentFailedError(
                f"{step.action!r} was answered with {cut(step.observation)!r} and reward {step.reward:g} before, and "
                f"now with {cut(observation)!r} and {reward:g}{ended}: an episode cannot be played on from there; let "
                "retries begin at the start (collect.branch=start), and actors play without advice (advice=0)"
            )


class _Played:
    """A task's environment during one attempt. One that blocks runs in a thread, so that other attempts go on."""

    def __init__(self, taskset: TaskSet, task: Task, threads: Executor) -> None:
        self._taskset = taskset
        self._task = task
        self._threads = threads
        self._blocking = taskset.blocks(task)
        self._environment: Environment | None = None

    async def reset(self, seed: int) -> str:
        def begin() -> str:
            self._environment = self._taskset.make(self._task)
            opening, _ = self._environment.reset(seed=seed)
            return opening

        return await self._call(begin)

    async def step(self, action: str) -> StepResult:
        environment = self._environment
        assert environment is not None, "it was reset"
        return await self._call(lambda: environment.step(action))

    async def close(self) -> None:
        if self._environment is not None:
            await self._call(self._environment.close)

    async def _call(self, function: Callable[[], T]) -> T:
        if not self._blocking:
            return function()
        running = asyncio.get_running_loop().run_in_executor(self._threads, function)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])  # the thread still uses the environment, which will be closed next
            raise
