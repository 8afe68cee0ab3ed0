"""The runner ``processes``: plays attempts in several processes of this machine, each with its own actor.

The processes are new interpreters: forks would copy a process with threads, and ``multiprocessing`` spawns would import
the caller's main module again. They are started when they are needed, and shared by all runners of a stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import time
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
from retro.rollout.worker_process import Job, Ready, Receive, Waiting, Worker, WorkerProcess, cores
from retro.types import Episode

logger = logging.getLogger(__name__)

MOST_WORKERS = 8
"""Of those that are started by default: each has its own copy of a local actor."""
MOST_LOSSES = 2
"""How often an attempt is played again because its worker process died, and how many workers in a row may end before
they are ready."""
_LINES_APART_SECONDS = 10.0
"""The least time between two lines of the log about workers that wait: each of them reports."""


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
        self._waiting: deque[Job] = deque()
        self._failed_starts = 0
        self._last_ready = time.monotonic()  # while no worker is ready: since when
        self._last_line = -_LINES_APART_SECONDS

    async def play(self, player: bytes, attempt: Attempt) -> Episode:
        """Play an attempt in the least loaded process. If that process dies, another one plays it.

        Args:
            player: a pickled :class:`PlayerSpec`.

        Raises:
            Exception: what was raised in the process.
            WorkersFailedError: if ``MOST_LOSSES`` + 1 processes died while they played it, or none became ready.
        """
        self._loop = asyncio.get_running_loop()
        self._handle_received()
        job = Job(next(self._numbers), player, attempt, self._loop.create_future())
        self._give(job)
        try:
            return await job.episode
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):  # a worker plays it
                self._waiting.remove(job)
            for worker in self._workers:
                if worker.jobs.pop(job.number, None):
                    worker.send(Cancel(job.number))
            self._hand_out()
            raise

    def close(self) -> None:
        """Stop all processes, even those that still play."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()

    def _give(self, job: Job) -> None:
        """Have a job played, now or when a worker is ready."""
        idle = any(worker.ready and not worker.jobs for worker in self._workers)
        fails = self._failed_starts > MOST_LOSSES and self._workers
        if not idle and not fails and len(self._workers) < self.most:
            self._start_worker()
        self._waiting.append(job)
        self._hand_out()

    def _start_worker(self) -> None:
        taken = {worker.slot for worker in self._workers}
        slot = next(slot for slot in range(self.most) if slot not in taken)
        if not self._workers:
            self._last_ready = time.monotonic()
        try:
            worker = self._start(slot, self._receive)
        except OSError as error:
            raise WorkersFailedError(f"no worker process can be started: {error}") from error
        self._workers.append(worker)

    def _hand_out(self) -> None:
        """Give jobs that wait to workers that are ready, to each at most its share: the others may be ready soon."""
        while self._waiting:
            ready = [worker for worker in self._workers if worker.ready]
            playing = sum(len(worker.jobs) for worker in ready)
            share = -(-(playing + len(self._waiting)) // max(1, len(self._workers)))
            worker = min(ready, key=lambda worker: len(worker.jobs), default=None)
            if worker is None or len(worker.jobs) >= share:
                return
            job = self._waiting.popleft()
            if job.episode.done():  # it is cancelled
                continue
            try:
                self._send(worker, job)
            except Exception as error:  # whatever it is, somebody waits for this job
                job.episode.set_exception(error)

    def _send(self, worker: Worker, job: Job) -> None:
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

    def _handle(self, worker: Worker, message: Answer | LogLine | Ready | Waiting | str) -> None:
        """Take a message of a process; a text says how it ended."""
        match message:
            case Answer(number, outcome):
                job = worker.jobs.pop(number, None)
                if job is not None and not job.episode.done():
                    if isinstance(outcome, Exception):
                        job.episode.set_exception(outcome)
                    else:
                        job.episode.set_result(outcome)
                self._hand_out()
            case Ready():
                worker.ready, self._failed_starts = True, 0
                self._hand_out()
            case Waiting() if worker in self._workers:
                self._wait(message)
            case LogLine(name, level, text):
                if self._logged_by.setdefault(message, worker.slot) == worker.slot:  # all say the same of a model
                    logging.getLogger(name).log(level, "%s", text)
            case str() if worker in self._workers:
                self._workers.remove(worker)
                worker.join()
                if worker.ready:
                    self._last_ready = time.monotonic()
                    self._play_again(list(worker.jobs.values()), message)
                else:
                    self._start_again(message)
                self._hand_out()

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

    def _start_again(self, how: str) -> None:
        """Replace a worker that ended before it was ready."""
        self._failed_starts += 1
        logger.warning("a worker process %s before it could play", how)
        if self._failed_starts <= MOST_LOSSES and self._waiting:
            try:
                self._start_worker()
            except Exception as error:  # whatever it is, somebody waits for these jobs
                self._stop(error)
        elif not self._workers:
            self._stop(
                WorkersFailedError(
                    f"{self._failed_starts} worker processes in a row ended before they could play; the last one "
                    f"{how}. What was played is kept, and the same command goes on"
                )
            )

    def _wait(self, message: Waiting) -> None:
        """Say what workers wait for. Without any other worker, this ends."""
        ready = sum(worker.ready for worker in self._workers)
        now = time.monotonic()
        if not ready and now - self._last_ready >= message.patience:
            self._stop(
                WorkersFailedError(
                    f"no worker could start within {message.patience:g} s (runner.start_seconds): they wait for "
                    f"{message.what}. What was played is kept, and the same command goes on: free what they wait for, "
                    "have each of them reserve less (runner.num_cpus, runner.num_gpus), or raise runner.start_seconds"
                )
            )
        elif now - self._last_line >= _LINES_APART_SECONDS:
            self._last_line = now
            waiting, others = len(self._workers) - ready, f"{ready} play" if ready else "nothing is played until then"
            logger.warning("%d of %d workers wait for %s; %s", waiting, len(self._workers), message.what, others)

    def _stop(self, error: Exception) -> None:
        """Fail the jobs that no worker has."""
        while self._waiting:
            job = self._waiting.popleft()
            if not job.episode.done():
                job.episode.set_exception(error)


def _given_up(job: Job, how: str) -> str:
    task = job.attempt.task
    return (
        f"{job.losses} worker processes ended while they played {task.environment}, task {task.id}, trial "
        f"{job.attempt.trial}; the last one {how}. What was played is kept, and the same command goes on: fewer "
        "processes (runner.workers) need less memory, and runner.kind=local needs none"
    )
