"""The runner ``processes``: plays attempts in several processes of this machine, each with its own actor.

The processes are new interpreters: forks would copy a process with threads, and ``multiprocessing`` spawns would import
the caller's main module again. They are started when they are needed, and shared by all runners of a stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Literal

from retro.config import PositiveInt, RunnerSection
from retro.rollout.attempts import Attempt
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.rollout.worker import Answer, Cancel, LogLine, NewPlayer, Play, Setup
from retro.rollout.worker_process import Job, Receive, Worker, WorkerProcess, cores
from retro.types import Episode

logger = logging.getLogger(__name__)

MOST_WORKERS = 8
"""Of those that are started by default: each has its own copy of a local actor."""
MOST_LOSSES = 2
"""How often an attempt is played again because its worker process died."""


class WorkersFailedError(RuntimeError):
    """Worker processes died again and again: the run stops, and goes on where it was when it is started again."""


class ProcessesRunnerOptions(RunnerSection):
    """In several processes of this machine, ``actor.concurrency`` attempts at once in all of them together."""

    kind: Literal["processes"] = "processes"
    workers: PositiveInt | None = None
    """The number of processes. Each has its own actor and environments. By default one for each core, at most 8."""

    @property
    def processes(self) -> int:
        return self.workers or min(cores(), MOST_WORKERS)


class WorkersRunner:
    """Plays attempts in the workers of a stage. Which of them plays an attempt changes nothing in it.

    Args:
        workers: they outlive this runner.
        spec: the player of all workers together: each builds one with its share of what is limited.
        shared_limits: whether the workers keep rate limits and budgets together.

    Raises:
        ConfigError: if the actor has a limit that cannot be divided among workers.
    """

    def __init__(self, workers: Workers, spec: PlayerSpec, shared_limits: bool = False) -> None:
        self.concurrency = spec.actor.concurrency
        self._slots = asyncio.Semaphore(self.concurrency)
        self._workers = workers
        self._player = pickle.dumps(replace(spec, actor=spec.actor.share(workers.most, shared_limits)))

    async def play(self, attempt: Attempt) -> Episode:
        async with self._slots:
            return await self._workers.play(self._player, attempt)

    def close(self) -> None:
        """Nothing: the next runner uses the same workers, which end with the parts of the stage."""


class ProcessesRunner(WorkersRunner):
    """Plays attempts in several processes of this machine."""

    Options = ProcessesRunnerOptions

    @classmethod
    def from_options(cls, options: ProcessesRunnerOptions, spec: PlayerSpec, parts: PlayerParts) -> ProcessesRunner:
        most = options.processes
        start = partial(WorkerProcess, setup=Setup.here(str(parts.device), parts.ledger, most))
        workers = parts.once(f"{most} worker processes", lambda: Workers(most, start))
        return cls(workers, spec)


class Workers:
    """Worker processes, which are started when they are needed, loaded evenly, and replaced when they die.

    Args:
        most: how many there may be.
        start: starts one, by its slot and what it calls with its messages.
    """

    def __init__(self, most: int, start: Callable[[int, Receive], Worker]) -> None:
        self.most = most
        self._start = start
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: list[Worker] = []
        self._players: dict[bytes, int] = {}
        self._numbers = count()
        self._logged_by: dict[LogLine, int] = {}
        self._received: deque[tuple[Worker, Any]] = deque()

    async def play(self, player: bytes, attempt: Attempt) -> Episode:
        """Play an attempt in the least loaded process. If that process dies, another one plays it.

        Args:
            player: a pickled :class:`PlayerSpec`.

        Raises:
            Exception: what was raised in the process.
            WorkersFailedError: if ``MOST_LOSSES`` + 1 processes died while they played it.
        """
        self._loop = asyncio.get_running_loop()
        self._handle_received()
        job = Job(next(self._numbers), player, attempt, self._loop.create_future())
        self._give(job)
        try:
            return await job.episode
        except asyncio.CancelledError:
            for worker in self._workers:
                if worker.jobs.pop(job.number, None):
                    worker.send(Cancel(job.number))
            raise

    def close(self) -> None:
        """Stop all processes, even those that still play."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()

    def _give(self, job: Job) -> None:
        if len(self._workers) < self.most and all(worker.jobs for worker in self._workers):
            taken = {worker.slot for worker in self._workers}
            slot = next(slot for slot in range(self.most) if slot not in taken)
            try:
                worker = self._start(slot, self._receive)
            except OSError as error:
                raise WorkersFailedError(f"no worker process can be started: {error}") from error
            self._workers.append(worker)
        worker = min(self._workers, key=lambda worker: len(worker.jobs))
        player = self._players.setdefault(job.player, len(self._players))
        if player not in worker.players:
            worker.players.add(player)
            worker.send(NewPlayer(player, job.player))
        worker.send(Play(job.number, player, job.attempt))
        worker.jobs[job.number] = job

    def _receive(self, worker: Worker, message: Any) -> None:
        """Called in the threads of the workers."""
        self._received.append((worker, message))
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: the next play, in another loop, handles the message
                self._loop.call_soon_threadsafe(self._handle_received)

    def _handle_received(self) -> None:
        while self._received:
            self._handle(*self._received.popleft())

    def _handle(self, worker: Worker, message: Answer | LogLine | str) -> None:
        """Take a message of a process; a text says how it ended."""
        match message:
            case Answer(number, outcome):
                job = worker.jobs.pop(number, None)
                if job is not None and not job.episode.done():
                    if isinstance(outcome, Exception):
                        job.episode.set_exception(outcome)
                    else:
                        job.episode.set_result(outcome)
            case LogLine(name, level, text):
                if self._logged_by.setdefault(message, worker.slot) == worker.slot:  # all say the same of a model
                    logging.getLogger(name).log(level, "%s", text)
            case str() if worker in self._workers:
                self._workers.remove(worker)
                worker.join()
                self._play_again(list(worker.jobs.values()), message)

    def _play_again(self, lost: list[Job], how: str) -> None:
        logger.warning("a worker process %s; the %d attempts that it played are played again", how, len(lost))
        for job in lost:
            job.losses += 1
            if job.episode.done():
                continue
            try:
                if job.losses > MOST_LOSSES:
                    raise WorkersFailedError(_given_up(job, how))
                self._give(job)
            except Exception as error:  # whatever it is, somebody waits for this job
                job.episode.set_exception(error)


def _given_up(job: Job, how: str) -> str:
    task = job.attempt.task
    return (
        f"{job.losses} worker processes ended while they played {task.environment}, task {task.id}, trial "
        f"{job.attempt.trial}; the last one {how}. What was played is kept, and the same command goes on: fewer "
        "processes (runner.workers) need less memory, and runner.kind=local needs none"
    )
