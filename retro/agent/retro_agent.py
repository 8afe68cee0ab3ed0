"""RetroAgent: a frozen actor that retries what it failed at, with reflections on its failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from retro.agent.functions import FunctionEnvironment
from retro.agent.model import RetrospectiveModel
from retro.envs.base import TaskSet
from retro.memory import Memory, ReflectionWindow
from retro.models.rounds import run_sync
from retro.prompts import Prompts
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.episode import Player
from retro.rollout.progress import CollectionProgress
from retro.rollout.runner import LocalRunner
from retro.types import Actor, Episode, Sampling, Split, Task

Record = Callable[[Episode], None]
"""Called with each episode as soon as it is over."""


class RetroAgent:
    """Plays a task; after a failure the retrospective model reflects (Best-of-N), and the actor tries again.

    Args:
        actor: The frozen language model that acts.
        environment: Where it acts: a task set, or :class:`FunctionEnvironment` around your own functions.
        model: The retrospective model; None retries without reflections.
        prompts: The actor's prompts; by default the ones the retrospective model was trained with.
        memory: What the actor sees of earlier reflections; by default the model's.
        sampling: How the actor samples.
        attempts: Plays of one task, the first one included.
        n: Reflections drawn after a failure, of which the reward model keeps one.
        advice: How often the actor may ask for a reflection in the middle of an episode. The environment also gets this
            action, as one that it does not know.
        seed: Equal seeds play equal episodes, if the actor's own sampling is deterministic.
        concurrency: Episodes under way at once; always 1 for functions, which share their state.

    Raises:
        ValueError: if there are no prompts to play with, or advice is to be given without a retrospective model.
    """

    def __init__(
        self,
        actor: Actor,
        environment: TaskSet,
        model: RetrospectiveModel | None = None,
        *,
        prompts: Prompts | None = None,
        memory: Memory | None = None,
        sampling: Sampling | None = None,
        attempts: int = 4,
        n: int = 8,
        advice: int = 0,
        seed: int = 0,
        concurrency: int = 256,
    ) -> None:
        prompts = prompts or (model.prompts if model else None)
        memory = memory or (model.memory if model else None)
        if prompts is None:
            raise ValueError("RetroAgent without a retrospective model needs prompts: load_prompts(name) gives them")
        if advice and model is None:
            raise ValueError("RetroAgent without a retrospective model gives no advice: pass a model, or advice=0")
        self._player = Player(
            taskset=environment,
            actor=actor,
            prompts=prompts,
            memory=memory or ReflectionWindow(),
            sampling=sampling or Sampling(),
        )
        self._key = (seed, "agent")
        self._reflector = model.sampler(n) if model else None
        self._attempts = attempts
        self._advice = advice
        self._concurrency = 1 if isinstance(environment, FunctionEnvironment) else concurrency

    def run(self, task: Task | str, attempts: int | None = None, record: Record | None = None) -> list[Episode]:
        """Play one task (or the task of an id) until it is solved or the attempts are spent.

        Args:
            task: What is played.
            attempts: Instead of the agent's own.
            record: Called with each episode as soon as it is over.

        Returns:
            The episodes, one for each trial; each retry holds the reflection before it. A failed episode that is too
            long for a reflection ends the list, with a logged warning.
        """
        return self.run_all([task], attempts, record)[0]

    def run_all(
        self,
        tasks: Sequence[Task | str],
        attempts: int | None = None,
        record: Record | None = None,
        progress: CollectionProgress | None = None,
    ) -> list[list[Episode]]:
        """:meth:`run` on many tasks, concurrently: the episodes of each, in the order of ``tasks``."""
        return run_sync(self.run_all_async(tasks, attempts, record, progress))

    async def run_all_async(
        self,
        tasks: Sequence[Task | str],
        attempts: int | None = None,
        record: Record | None = None,
        progress: CollectionProgress | None = None,
    ) -> list[list[Episode]]:
        """:meth:`run_all`, for callers with an event loop."""
        plan = Plan(self._key, self._attempts if attempts is None else attempts, advice=self._advice)
        with closing(LocalRunner(self._player, self._concurrency)) as runner:
            journal = _Recording(record) if record else None
            return await collect(runner, list(map(self._task, tasks)), plan, self._reflector, journal, progress)

    def _task(self, task: Task | str) -> Task:
        return task if isinstance(task, Task) else Task(self._player.taskset.name, task, Split.TEST)


@dataclass(frozen=True, slots=True)
class _Recording:
    """A journal that passes on each episode and keeps none."""

    record: Record

    def get(self, id: str, /) -> Episode | None:
        return None

    def add(self, episode: Episode, /) -> None:
        self.record(episode)
