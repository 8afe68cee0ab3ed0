"""Playing arms: each through the one loop of ``rollout``, resumable at any episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from retro.config import ActorSection, ConfigError, MemorySection
from retro.envs.base import EnvironmentFailedError, TaskSet
from retro.evaluation.arms import Arm
from retro.evaluation.records import EpisodeRecords, Record, chains
from retro.evaluation.roles import Writer
from retro.evaluation.sources import Shuffled, Written
from retro.retrospective.samplers.base import Scorer
from retro.rollout.attempts import Attempt, Plan
from retro.rollout.collect import collect
from retro.rollout.progress import CollectionProgress
from retro.rollout.runner import Runner
from retro.rollout.trials import Unreflected
from retro.types import ActorError, Episode, Reflection, ReflectionRequest, Reflector, StopReason, Task


@dataclass
class Candidates:
    """A scorer that keeps the reflections it scored: the report shows those that were not chosen, too."""

    scorer: Scorer
    by_episode: dict[str, tuple[Reflection, ...]] = field(default_factory=dict)
    """The failed episode's id → its scored reflections."""

    async def __call__(self, request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
        scores = await self.scorer(request, reflections)
        scored = (replace(r, score=score) for r, score in zip(reflections, scores, strict=True))
        self.by_episode[request.episode.id] = (*self.by_episode.get(request.episode.id, ()), *scored)
        return scores


class ArmJournal:
    """The episodes that an arm has played; new ones are added to the evaluation's records."""

    def __init__(self, records: EpisodeRecords, arm: str, mark: str, candidates: Candidates | None) -> None:
        self._records, self._arm, self._mark, self._candidates = records, arm, mark, candidates
        self._episodes = {record.episode.id: record.episode for record in records.of(arm, mark)}

    def get(self, id: str, /) -> Episode | None:
        return self._episodes.get(id)

    def add(self, episode: Episode, /) -> None:
        kept = self._candidates.by_episode.pop(episode.parent or "", ()) if self._candidates else ()
        self._records.add(Record(self._arm, self._mark, episode, kept))


@dataclass(frozen=True, slots=True)
class RetriesApart:
    """A runner that has one runner play the first attempts and another the retries."""

    first: Runner
    retries: Runner

    @property
    def concurrency(self) -> int:
        return self.first.concurrency

    async def play(self, attempt: Attempt) -> Episode:
        return await (self.retries if attempt.trial else self.first).play(attempt)

    def close(self) -> None:
        self.first.close()
        self.retries.close()


@dataclass
class ArmPlayer:
    """Plays arms on the same tasks. Recorded episodes are not played again; arms share first plays that are equal."""

    taskset: TaskSet
    tasks: Sequence[Task]
    seed: int
    records: EpisodeRecords
    runner: Callable[[ActorSection, MemorySection], Runner]
    """Makes what plays with an actor and a memory."""
    models: Callable[[Arm], tuple[Reflector, Candidates | None]]
    """Makes the reflector of an arm whose reflections a model writes."""
    earlier: Sequence[Record] = ()
    """The records of an earlier evaluation: arms with equal parts take their episodes over."""
    _first: dict[str, dict[str, Episode]] = field(default_factory=dict)
    """Actor and memory → episode id → first play."""

    async def play(self, arm: Arm, mark: str, best: Sequence[Record] = ()) -> list[Record]:
        """Every record of ``arm``, on the tasks that it can play.

        Args:
            mark: The arm's fingerprint.
            best: The best arm's records; ``Writer.SHUFFLED`` only.

        Raises:
            ActorError: if the actor failed for good on some episodes. What was played is kept: the same call resumes.
            EnvironmentFailedError: if the environment failed in the first of them.
        """
        tasks = self.tasks_of(arm)
        # One key for all arms: their draws are paired, and a first play is the same episode in each.
        plan = Plan((self.seed, "evaluate", f"temperature {arm.actor.temperature:g}"), arm.attempts, advice=arm.advice)
        advised = mark if arm.advice else ""  # a first play with advice is this arm's own
        first = self._first.setdefault(arm.actor.model_dump_json() + arm.memory.model_dump_json() + advised, {})
        self._take_over(arm, mark, plan, tasks, first)
        todo = [task for task in tasks if not _complete(self._chains(arm, mark).get(task.id, []), arm.attempts)]
        if todo:
            await self._play(arm, mark, plan, todo, best)
        played = self._chains(arm, mark)
        first |= {played[task.id][0].episode.id: played[task.id][0].episode for task in tasks}
        return [record for task in tasks for record in played[task.id]]

    def _chains(self, arm: Arm, mark: str) -> dict[str, list[Record]]:
        """The recorded chains by task; an earlier evaluation may have allowed more attempts."""
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
        with closing(self._runner(arm)) as runner:
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

    def _runner(self, arm: Arm) -> Runner:
        first = self.runner(arm.actor, arm.memory)
        return first if arm.retries == arm.actor else RetriesApart(first, self.runner(arm.retries, arm.memory))

    def _take_over(self, arm: Arm, mark: str, plan: Plan, tasks: Sequence[Task], first: dict[str, Episode]) -> None:
        """Give ``arm`` the episodes of an arm with equal parts, played now or in an earlier evaluation under any name,
        and the first plays of arms with the same actor and memory, which differ from it in their reflections alone.
        Where advice is given, the first plays differ, too."""
        played = {(task.environment, task.id) for task in tasks}
        own = {record.episode.id for record in self.records.of(arm.name, mark)}
        for record in (*self.earlier, *self.records.all()):
            episode = record.episode
            equal = record.fingerprint == mark and episode.trial < arm.attempts and episode.id not in own
            if equal and (episode.task.environment, episode.task.id) in played:
                self.records.add(replace(record, arm=arm.name))
                own.add(episode.id)
        for identity in (Attempt(plan.key, task).id for task in tasks):
            if identity in first and identity not in own:
                self.records.add(Record(arm.name, mark, first[identity]))

    def _reflector(self, arm: Arm, best: Sequence[Record]) -> tuple[Reflector | None, Candidates | None]:
        match arm.policy.writer:
            case Writer.NONE:
                return None, None
            case Writer.ORACLE:
                return Written(lambda task: self.taskset.oracle(task) or "", "oracle"), None
            case Writer.VAGUE:
                return Written(self._vague, "vague"), None
            case Writer.SHUFFLED:
                donors = {task: [r.episode for r in chain] for task, chain in chains(best).items()}
                return Shuffled(donors, self.tasks, self.seed), None
        return self.models(arm)

    def _vague(self, task: Task) -> str:
        vague: Callable[[Task], str] | None = getattr(self.taskset, "vague", None)
        if vague is None:
            raise ConfigError(f"evaluate.arms: environment {self.taskset.name!r} has no vague reflection")
        return vague(task)


def _complete(chain: Sequence[Record], attempts: int) -> bool:
    if not chain:
        return False
    last = chain[-1]
    return last.episode.success or last.episode.trial == attempts - 1 or bool(last.unreflected)
