"""The runner ``ray``: plays attempts in Ray actors, on an existing cluster or on one that it starts on this machine.

A worker is one Ray actor. It plays what a worker process of the runner ``processes`` plays, by the same messages, so
that attempts are spread, cancelled and played again by the same code. A further Ray actor keeps the limits of an actor
behind an API for all workers.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

from pydantic import model_validator

from retro.actors.openai import OpenAIOptions
from retro.config import ConfigError, NonNegativeFloat, PositiveFloat, PositiveInt, RunnerSection
from retro.reading import cut
from retro.rollout.processes import MOST_WORKERS, Workers, WorkersRunner
from retro.rollout.ray_worker import CounterProcess, RayWorker
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.rollout.worker import Setup
from retro.rollout.worker_process import Receive, cores

_ANSWERS_IN_SECONDS = 10.0
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a client of HTTP/2 begins, with its (empty) settings. Ray's servers speak it, and answer with theirs."""
_SETTINGS_FRAME = 4
_SHOWN_CHARS = 1000
_OBJECT_STORE_BYTES = 128 * 2**20
"""Of a cluster that is started here. Messages of ordinary size do not pass through the store."""
_SETTINGS = {
    # despite its name, 0 has the processes of a new cluster listen at 127.0.0.1 only, on any system
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""The environment in which Ray is imported and a cluster is started."""


class RayRunnerOptions(RunnerSection):
    """In Ray actors, ``actor.concurrency`` attempts at once in all of them together."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """``HOST:PORT`` of a cluster, or ``auto`` for the one that this machine is part of. By default a cluster is started
    on this machine, and ends with the stage."""
    workers: PositiveInt | None = None
    """The number of Ray actors that play. Each has its own actor and environments. By default as many as this machine
    has cores for, at most 8."""
    num_cpus: PositiveFloat = 1.0
    """The cores that Ray reserves for each worker. A local actor computes with so many threads."""
    num_gpus: NonNegativeFloat = 0.0
    """The GPUs, or the part of one, that Ray reserves for each worker. At 0, a local actor computes on the CPU."""
    start_seconds: PositiveFloat = 600.0
    """The longest time that the run waits if no worker has its resources, because others use them. It then stops with
    a line that says what is missing. While one worker plays, the others wait for as long as they need."""

    @property
    def processes(self) -> int:
        return self.workers or max(1, min(int(cores() / self.num_cpus), MOST_WORKERS))

    @model_validator(mode="after")
    def _reservable(self) -> Self:
        for key in ("num_cpus", "num_gpus"):
            value = getattr(self, key)
            if value > 1 and not value.is_integer():
                raise ValueError(f"{key}: Ray reserves whole numbers above 1, not {value:g}")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        address = self.address
        if address is None or address == "auto":
            return self
        host, colon, port = address.rpartition(":")
        if "://" in address or not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(
                f"address: {address!r} is not HOST:PORT (as `ray start --head` prints it) or auto; a run is started "
                "on a machine of the cluster, so Ray Client (ray://) is not supported"
            )
        return self


class RayRunner(WorkersRunner):
    """Plays attempts on a Ray cluster."""

    Options = RayRunnerOptions

    @classmethod
    def from_options(cls, options: RayRunnerOptions, spec: PlayerSpec, parts: PlayerParts) -> RayRunner:
        """Raises ConfigError if the cluster cannot be reached, is too small for the workers, or several processes were
        launched, of which each would have its own workers and limits."""
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched > 1:
            raise ConfigError(
                f"runner.kind=ray: {launched} processes were launched, and each would have its own workers and limits: "
                "use runner.kind=local, or launch one process"
            )
        name = options.model_dump_json()
        cluster = parts.once(f"Ray cluster {name}", lambda: RayCluster(options, parts))
        if isinstance(spec.actor, OpenAIOptions):
            cluster.count_limits()
        workers = parts.once(f"Ray workers {name}", lambda: Workers(options.processes, cluster.worker))
        return cls(workers, spec, shared_limits=True)


class RayCluster:
    """The connection of this process to a Ray cluster. It is closed, and a cluster that was started here is ended,
    unless this process was connected before.

    Raises:
        ConfigError: if the cluster cannot be reached, or is too small for the workers.
    """

    def __init__(self, options: RayRunnerOptions, parts: PlayerParts) -> None:
        self._options = options
        self._ledger = parts.ledger and parts.ledger.absolute()  # Ray actors have working folders of their own
        self._setup = Setup.here("auto" if options.num_gpus else "cpu", self._ledger, options.processes)
        self._counter = CounterProcess()
        self._opened = _connect(options.address)
        try:
            _require_room(options)
        except ConfigError:
            self.close()
            raise

    def count_limits(self) -> None:
        """Have the rate limits and the budgets of actors kept for all workers together."""
        self._counter.start(self._ledger)

    def worker(self, slot: int, receive: Receive) -> RayWorker:
        """Start a worker."""
        options = self._options
        resources = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
        return RayWorker(slot, receive, self._setup, self._counter, resources, options.start_seconds)

    def close(self) -> None:
        import ray

        self._counter.close()
        if self._opened:
            ray.shutdown()


def _connect(address: str | None) -> bool:
    """Connect this process to a cluster, or start one.

    Returns:
        False if it was connected already.
    """
    if address is not None and address != "auto":
        _require_answer(address)
    with _settings({} if address else _SETTINGS):
        import ray

        if ray.is_initialized():
            here = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", here):
                raise ConfigError(f"runner.address={address}: this process is connected to the Ray cluster at {here}")
            return False
        if address is not None:
            _open(1, f"runner.address={address}", address=address)
        else:
            # Ray gives up after 30 s, which a busy machine needs for the first start
            new = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
            _open(2, "runner.kind=ray: no Ray cluster can be started on this machine", address="local", **new)
    return True


def _open(tries: int, failure: str, **options: Any) -> None:
    import ray

    for number in range(1, tries + 1):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:  # of many classes, also Exception itself
            ray.shutdown()  # of what had been started
            if number == tries:
                raise ConfigError(f"{failure}: {cut(' '.join(str(error).split()), _SHOWN_CHARS)}") from None


def _require_answer(address: str) -> None:
    """Ray itself would try for many minutes."""
    from ray.util import get_node_ip_address

    host, _, port = address.rpartition(":")
    host = get_node_ip_address() if host in ("127.0.0.1", "localhost", "[::1]") else host.strip("[]")  # as Ray does
    try:
        with socket.create_connection((host, int(port)), _ANSWERS_IN_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            connection.sendall(_HELLO)
            with connection.makefile("rb") as stream:
                header = stream.read(9)
        if header[3:4] != bytes([_SETTINGS_FRAME]):
            raise OSError("what listens there is not Ray")
    except OSError as error:
        raise ConfigError(
            f"runner.address={address}: no Ray cluster can be reached there ({error}): start one with `ray start "
            "--head`, correct the address, or leave it out to start a cluster on this machine"
        ) from None


@contextmanager
def _settings(variables: dict[str, str]) -> Iterator[None]:
    """Within, the environment has these variables as well, unless the user has set them."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _require_room(options: RayRunnerOptions) -> None:
    import ray

    nodes: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room(node, options) for node in nodes)
    if room >= options.processes:
        return
    gpus = f" and runner.num_gpus={options.num_gpus:g}" if options.num_gpus else ""
    held = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    raise ConfigError(
        f"runner.workers={options.processes} with runner.num_cpus={options.num_cpus:g}{gpus} for each: the Ray cluster "
        f"has room for {room} (its machines have: {held}); lower runner.workers, or what each of them reserves"
    )


def _room(node: dict[str, float], options: RayRunnerOptions) -> int:
    """How many workers fit on a machine that does nothing else."""
    room = int(node.get("CPU", 0) / options.num_cpus)
    return min(room, int(node.get("GPU", 0) / options.num_gpus)) if options.num_gpus else room
