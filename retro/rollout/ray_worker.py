"""Ray actors that play, and the one that keeps their limits, each from both sides.

Only the methods of classes that a cluster runs, or that talk to one, import Ray: this module is imported where a config
names the runner ``ray``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any
from uuid import uuid4

from retro.actors.openai import OpenAIOptions
from retro.actors.shared_limits import Call, LimitCounter, SharedLimits
from retro.config import ActorSection, ConfigError
from retro.reading import cut
from retro.rollout.processes import WorkersFailedError
from retro.rollout.worker import ENDS_IN_SECONDS, Answer, LogLine, Setup, serve
from retro.rollout.worker_process import Ready, Receive, Waiting, Worker
from retro.types import Usage

logger = logging.getLogger(__name__)

_REPORTS_AFTER_SECONDS = 30.0
"""How long a worker waits for resources before it says so. The time doubles with every report."""
_MANY = 1_000_000
"""Calls that the counter may have at once. Most of them wait; Ray would delay others, and with them those that end."""
_SHOWN_CHARS = 500


class WorkerActor:
    """A worker in the cluster. Ray calls :meth:`take` and :meth:`messages` in a thread each, and it plays in another.

    Args:
        setup: A pickled :class:`Setup`.
        path: The import path of the run, of which Ray itself passes on the script's folder and the working folder.
        name: What the counter of limits calls this worker.
        counter: The name of the Ray actor that keeps the limits.
    """

    def __init__(self, setup: bytes, path: Sequence[str], name: str, counter: str) -> None:
        sys.path += [folder for folder in path if folder not in sys.path]
        self._name, self._counter = name, counter
        self._incoming: SimpleQueue[bytes | None] = SimpleQueue()
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        Thread(target=self._serve, args=(pickle.loads(setup),), daemon=True).start()

    def started(self) -> None:
        """Nothing: it has started when this is called."""

    def take(self, message: bytes | None) -> None:
        """Take a pickled message; None after the last one."""
        self._incoming.put(message)

    def messages(self) -> list[bytes | None]:
        """The pickled messages since the last call, at least one; None after the last one."""
        found = [self._outgoing.get()]
        while not self._outgoing.empty():
            found.append(self._outgoing.get())
        return found

    def _serve(self, setup: Setup) -> None:
        with _fatal():
            asyncio.run(serve(setup, self._send, self._listen, self._limits))
        self._outgoing.put(None)

    def _send(self, message: Answer | LogLine) -> None:
        self._outgoing.put(pickle.dumps(message))

    def _listen(self, handle: Callable[[Any], None], end: Callable[[], object]) -> None:
        with _fatal():
            while (message := self._incoming.get()) is not None:
                handle(pickle.loads(message))
            end()

    def _limits(self, actor: str, section: ActorSection) -> SharedLimits:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if not isinstance(section, OpenAIOptions):
            raise ConfigError(f"actor.kind={section.chosen}: runner.kind=ray cannot keep its limits for all workers")
        try:
            counter = ray.get_actor(self._counter)
            ray.get(counter.open.remote(actor, section.requests_per_minute, section.tokens_per_minute, section.budget))
        except RayTaskError as error:
            raise error.cause from None
        except (RayActorError, ValueError) as error:  # Ray knows no actor of this name any more
            raise _counter_lost(error) from None
        return SharedLimits(actor, _CounterConnection(counter, self._name))


@contextlib.contextmanager
def _fatal() -> Iterator[None]:
    """End the process at an error that no attempt can be told: the driver then plays its attempts elsewhere."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class _CounterConnection:
    """A worker's connection to the counter (:class:`retro.actors.shared_limits.Counter`)."""

    def __init__(self, counter: Any, worker: str) -> None:
        self._counter = counter
        self._worker = worker

    async def begin(self, call: Call, estimate: Usage) -> Exception | None:
        from ray.exceptions import RayActorError

        try:
            error: Exception | None = await self._counter.begin.remote(self._worker, call, estimate)
        except RayActorError as lost:
            return _counter_lost(lost)
        return error

    def end(self, call: Call, used: Usage) -> None:
        self._counter.end.remote(self._worker, call, used)

    def hold(self, actor: str, seconds: float) -> None:
        self._counter.hold.remote(actor, seconds)


def _counter_lost(error: Exception) -> WorkersFailedError:
    return WorkersFailedError(
        f"the process that keeps the limits of the actor was lost ({_first_line(error)}); what was played is kept, and "
        "the same command goes on"
    )


class CounterProcess:
    """The Ray actor that keeps the limits for all workers, from the side of the run. It is started when it is needed,
    on the run's own node, where the ledger is."""

    def __init__(self) -> None:
        self.name = f"retro-limits-{uuid4().hex}"
        self._actor: Any = None

    def start(self, ledger: Path | None) -> None:
        """Start it, if it does not run yet."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._actor is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            options = {"name": self.name, "num_cpus": 0, "max_concurrency": _MANY, "scheduling_strategy": here}
            self._actor = ray.remote(LimitCounter).options(**options).remote(ledger)

    def forget(self, worker: str) -> None:
        """A worker has ended."""
        if self._actor is not None:
            self._actor.forget.remote(worker)

    def close(self) -> None:
        """Have the ledger written, and end it."""
        import ray
        from ray.exceptions import RayError

        actor, self._actor = self._actor, None
        if actor is not None:
            with contextlib.suppress(RayError):  # it was lost, and the run has said so
                ray.get(actor.keep.remote(), timeout=ENDS_IN_SECONDS)
            ray.kill(actor)


class RayWorker(Worker):
    """A worker in the cluster, from the side of the run. Ray does not restart it: another worker takes its place, and
    the attempts that it played go to those that have the fewest. It is given attempts once it has its resources.

    Args:
        resources: What Ray reserves for it: ``num_cpus`` and ``num_gpus``.
        start_seconds: The longest time that the run waits if no worker has its resources.
    """

    def __init__(
        self,
        slot: int,
        receive: Receive,
        setup: Setup,
        counter: CounterProcess,
        resources: Mapping[str, float],
        start_seconds: float,
    ) -> None:
        import ray

        super().__init__(slot, receive)
        self.ready = False
        self._name = uuid4().hex
        self._counter = counter
        self._resources = resources
        self._start_seconds = start_seconds
        actor = ray.remote(
            **resources,
            max_restarts=0,
            concurrency_groups={"take": 1, "messages": 1},
            runtime_env={"env_vars": _environment()},
        )(WorkerActor)
        self._actor = actor.remote(pickle.dumps(setup), [*filter(None, sys.path)], self._name, counter.name)
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, message: Any) -> None:
        self._take(pickle.dumps(message))

    def end(self) -> None:
        self._take(None)

    def join(self) -> None:
        self.end()
        self._thread.join(ENDS_IN_SECONDS)
        if self._thread.is_alive():
            self._kill()
            self._thread.join()

    def _take(self, message: bytes | None) -> None:
        with contextlib.suppress(Exception):  # it was lost, which the other thread is told
            self._actor.take.options(concurrency_group="take").remote(message)

    def _kill(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # it was lost
            ray.kill(self._actor)

    def _read(self) -> None:
        from ray.exceptions import RayError

        try:
            how = self._read_all()
        except RayError as error:
            how = f"was lost: {_first_line(error)}"
        except Exception as error:
            logger.exception("a worker sent what cannot be read")
            how = f"sent what cannot be read: {error}"
        try:
            self._kill()
            self._counter.forget(self._name)
        finally:
            self.receive(self, how)  # whatever happens, its attempts are played again

    def _read_all(self) -> str:
        """Receive all messages. Returns how the worker ended."""
        import ray

        started = [self._actor.started.remote()]
        pauses = report_pauses(self._start_seconds)
        while not ray.wait(started, timeout=next(pauses))[0]:
            free = ray.available_resources()
            self.receive(self, Waiting(lacking(self._resources, free), self._start_seconds))
        ray.get(started)
        self.receive(self, Ready())
        while True:
            for message in ray.get(self._actor.messages.options(concurrency_group="messages").remote()):
                if message is None:
                    return "ended"
                self.receive(self, pickle.loads(message))


def report_pauses(patience: float) -> Iterator[float]:
    """The seconds between the reports of a worker that waits; one of them comes at ``patience``."""
    waited, pause = 0.0, min(_REPORTS_AFTER_SECONDS, patience)
    while True:
        yield pause
        waited += pause
        pause = min(waited, patience - waited) if waited < patience else patience


def lacking(resources: Mapping[str, float], free: Mapping[str, float]) -> str:
    """What a worker waits for."""
    names = {"num_cpus": ("CPU", "CPUs"), "num_gpus": ("GPU", "GPUs")}
    asked = " and ".join(f"{key}={value:g}" for key, value in resources.items() if value)
    left = " and ".join(f"{free.get(names[key][0], 0):g} {names[key][1]}" for key, value in resources.items() if value)
    return f"{asked} on one machine of the Ray cluster, or to start there (free in all of it: {left})"


def _environment() -> dict[str, str]:
    """What a worker gets beside the environment of its node. Ray stores it with the job, so it holds no secrets."""
    return {"PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}  # sets have one order in all of them


def _first_line(error: Exception) -> str:
    """What Ray says first, and what was raised if it was an error of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[:1] if len(lines) < 2 or "creation task" not in lines[0] else [lines[0], lines[-1]]
    return cut(" ".join(said).rstrip(".") or type(error).__name__, _SHOWN_CHARS)
