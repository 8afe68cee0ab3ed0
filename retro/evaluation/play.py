"""Playing arms: each through the one loop of ``rollout``, resumable at any episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from retro.config import ConfigError
from retro.envs.base import EnvironmentFailedError, TaskSet
from retro.evaluation.arms import Arm, Writer
from retro.evaluation.records import EpisodeRecords, Record, chains
from retro.evaluation.sources import Shuffled, Written
from retro.retrospective.samplers.base import Scorer
from retro.rollout.attempts import Attempt, Plan
from retro.rollout.collect import collect
from retro.rollout.progress import CollectionProgress
from retro.rollout.runner import Runner
from retro.rollout.trials import Unreflected
from retro.types import (
    ActorError,
    Episode,
    Reflection,
    ReflectionRequest,
    Reflector,
    StopReason,
    Task,
)


@dataclass
class Candidates:
    """Keeps what a Best-of-N scorer was asked, so that the report can show what was not chosen."""

    scorer: Scorer
    by_episode: dict[str, tuple[Reflection, ...]] = field(default_factory=dict)
    """The failed episode's id → its scored reflections."""

    async def __call__(self, request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
        scores = await self.scorer(request, reflections)
        scored = (replace(r, score=score) for r, score in zip(reflections, scores, strict=True))
        self.by_episode[request.episode.id] = tuple(scored)
        return scores


class ArmJournal:
    """What was recorded of an arm as it is now, and the records of what is played next."""

    def __init__(self, records: EpisodeRecords, arm: str, mark: str, candidates: Candidates | None) -> None:
        self._records, self._arm, self._mark, self._candidates = records, arm, mark, candidates
        self._recorded = {record.episode.id: record.episode for record in records.of(arm, mark)}

    def get(self, id: str, /) -> Episode | None:
        return self._recorded.get(id)

    def add(self, episode: Episode, /) -> None:
        kept = self._candidates.by_episode.pop(episode.parent or "", ()) if self._candidates else ()
        self._records.add(Record(self._arm, self._mark, episode, kept))


@dataclass
class ArmPlayer:
    """Plays arms on the same tasks. What was recorded is never played again, and equal first plays are shared."""

    taskset: TaskSet
    tasks: Sequence[Task]
    seed: int
    records: EpisodeRecords
    runner: Callable[[Arm], Runner]
    """What plays an arm."""
    models: Callable[[Arm], tuple[Reflector, Candidates | None]]
    """Builds the reflector of an arm whose reflections a model writes."""
    earlier: Sequence[Record] = ()
    """What an evaluation before this one recorded: episodes of arms with equal parts are taken over."""
    _first: dict[str, dict[str, Episode]] = field(default_factory=dict)
    """Actor and memory → episode id → first play."""

    async def play(self, arm: Arm, mark: str, best: Sequence[Record] = ()) -> list[Record]:
        """Every record of ``arm``, of as many tasks as it can play.

        Args:
            mark: The arm's fingerprint.
            best: The best arm's records; ``Writer.SHUFFLED`` only.

        Raises:
            ActorError: if the actor failed for good on some episodes: what was played is kept, the same call goes on.
            EnvironmentFailedError: if it was the environment, in the first of them.
        """
        tasks = self.tasks_of(arm)
        # One key for all arms: their draws are paired, and a first play is the same episode in each.
        plan = Plan((self.seed, "evaluate", f"temperature {arm.actor.temperature:g}"), arm.attempts)
        self._take_over(arm, mark, tasks)
        self._share_first_plays(arm, mark, plan, tasks)
        known = self._known(arm, mark)
        todo = [task for task in tasks if not _complete(known.get(task.id, []), arm.attempts)]
        if todo:
            await self._play(arm, mark, plan, todo, best)
            known = self._known(arm, mark)
        pool = self._first[_alike_at_first(arm)]
        pool.update({known[task.id][0].episode.id: known[task.id][0].episode for task in tasks})
        return [record for task in tasks for record in known[task.id]]

    def _known(self, arm: Arm, mark: str) -> dict[str, list[Record]]:
        """Recorded chains by task; an earlier evaluation may have allowed more attempts."""
        return chains([r for r in self.records.of(arm.name, mark) if r.episode.trial < arm.attempts])

    def tasks_of(self, arm: Arm) -> list[Task]:
        """The tasks that an arm can play: the oracle does not know every one."""
        if arm.policy.writer is Writer.ORACLE:
            return [task for task in self.tasks if self.taskset.oracle(task) is not None]
        return list(self.tasks)

    async def _play(self, arm: Arm, mark: str, plan: Plan, tasks: list[Task], best: Sequence[Record]) -> None:
        reflector, candidates = self._reflector(arm, best)
        journal = ArmJournal(self.records, arm.name, mark, candidates)
        unreflected: list[Unreflected] = []
        with closing(self.runner(arm)) as runner:
            progress = CollectionProgress(len(tasks), arm.name)
            played = await collect(runner, tasks, plan, reflector, journal, progress, unreflected.append)
        last = {record.episode.id: record for record in self.records.of(arm.name, mark)}
        for skipped in unreflected:
            self.records.add(replace(last[skipped.episode.id], unreflected=skipped.reason))
        errors = [e for chain in played for e in chain if e.broken]
        if errors:
            first = errors[0]
            alike = sum(episode.stop is first.stop for episode in errors)
            kind = EnvironmentFailedError if first.stop is StopReason.ENVIRONMENT_ERROR else ActorError
            raise kind(
                f"arm {arm.name}: the {first.broken_by} failed in {alike} episodes "
                f"({first.info.get('error', 'no message')}); what was played is kept: the same command goes on"
            )

    def _take_over(self, arm: Arm, mark: str, tasks: Sequence[Task]) -> None:
        """Give ``arm`` what an arm of equal parts played, now or in an earlier evaluation, whatever it was called."""
        played = {(task.environment, task.id) for task in tasks}
        own = {record.episode.id for record in self.records.of(arm.name, mark)}
        for record in (*self.earlier, *self.records.all()):
            episode = record.episode
            as_it_was = record.fingerprint == mark and episode.trial < arm.attempts and episode.id not in own
            if as_it_was and (episode.task.environment, episode.task.id) in played:
                self.records.add(replace(record, arm=arm.name))

    def _share_first_plays(self, arm: Arm, mark: str, plan: Plan, tasks: Sequence[Task]) -> None:
        """Give ``arm`` the first plays of arms with the same actor and memory: they differ in reflections alone."""
        pool = self._first.setdefault(_alike_at_first(arm), {})
        own = {record.episode.id for record in self.records.of(arm.name, mark)}
        for task in tasks:
            identity = Attempt(plan.key, task).id
            if identity in pool and identity not in own:
                self.records.add(Record(arm.name, mark, pool[identity]))

    def _reflector(self, arm: Arm, best: Sequence[Record]) -> tuple[Reflector | None, Candidates | None]:
        if arm.policy.writer is Writer.NONE:
            return None, None
        if arm.policy.writer is Writer.ORACLE:
            return Written(lambda task: self.taskset.oracle(task) or "", "oracle"), None
        if arm.policy.writer is Writer.VAGUE:
            return Written(self._vague, "vague"), None
        if arm.policy.writer is Writer.SHUFFLED:
            donors = {task: [r.episode for r in chain] for task, chain in chains(best).items()}
            return Shuffled(donors, self.tasks, self.seed), None
        return self.models(arm)

    def _vague(self, task: Task) -> str:
        vague = getattr(self.taskset, "vague", None)
        if vague is None:
            raise ConfigError(f"evaluate.arms: environment {self.taskset.name!r} has no vague reflection")
        text: str = vague(task)
        return text


def _alike_at_first(arm: Arm) -> str:
    """Equal for arms whose first plays are equal."""
    return arm.actor.model_dump_json() + arm.memory.model_dump_json()


def _complete(chain: Sequence[Record], attempts: int) -> bool:
    if not chain:
        return False
    last = chain[-1]
    return last.episode.success or last.episode.trial == attempts - 1 or bool(last.unreflected)
