"""Load, memory and lost outcomes of ``retro serve``, with the export of a finished run on this machine's CPU.

    python benchmarks/serving.py runs/quickstart --json FILE [--requests 1000] [--sustained 10000] [--kills 20]

- **Load**: all requests at once, against the same requests to the engine in a loop, one after the other. The requests
  are about failed attempts in the run's buffer, each with a seed of its own; both sides must write the same texts.
- **Memory**: ``--sustained`` requests, 64 at a time; the server's highest resident memory in the first half, and in the
  second (it goes up and down with the length of the trajectories in a batch).
- **Outcomes**: the server is killed (SIGKILL) ``--kills`` times, up to three seconds after it has confirmed an outcome,
  while clients get reflections and report outcomes, and started again on the same buffer. Every outcome that it
  confirmed must be there.

Exits with 1 if the load is served less than three times as fast as by the loop, if any answer is not 200 or differs, if
memory grows by more than a twentieth, or if an outcome is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.table import Table

from benchmarks.pipeline import machine
from benchmarks.pipeline_timing import Check, report
from retro import RetrospectiveModel
from retro.buffer import ReplayBuffer
from retro.cli.errors import one_line_errors
from retro.cli.logs import quieten
from retro.config import ConfigError
from retro.layout import RunFolder
from retro.types import to_json

LEAST_RATIO = 3.0
MOST_GROWTH = 0.05
AT_ONCE = 64
"""Requests under way in the sustained load, and those that the server works on at once."""
CLIENTS = 8
"""That report outcomes while the server is killed."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    url: str
    process: subprocess.Popen[str]

    @property
    def mebibytes(self) -> float:
        """Resident memory."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


@contextmanager
def serving(export: Path, waiting: int, *more: str) -> Iterator[Served]:
    """``retro serve`` in a process of its own, once it has logged its address."""
    options = ["--port", "0", "--active", str(AT_ONCE), "--waiting", str(waiting), "--timeout", "3600", *more]
    command = [sys.executable, "-m", "retro.cli", "serve", str(export), *options]
    with tempfile.NamedTemporaryFile("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            yield Served(_address(process, Path(log.name)), process)
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    while True:
        ended = process.poll() is not None
        text = log.read_text(encoding="utf-8")
        for line in text.splitlines():
            if '"url"' in line and line.endswith("}"):
                return str(json.loads(line)["url"])
        if ended:
            raise ConfigError(f"retro serve ended: {text[-2000:]}")
        time.sleep(0.05)


def bodies(run: Path, count: int, n: int) -> list[dict[str, Any]]:
    """``count`` requests about the run's failed attempts, from the first again where there are fewer."""
    with ReplayBuffer(f"sqlite:///{RunFolder(run).buffer}", create=False) as buffer:
        failed = [episode for episode in buffer.episodes() if episode.failed][:count]
    if not failed:
        raise ConfigError(f"{run}: its buffer has no failed attempt")
    documents = [{"trajectory": to_json(e.trajectory), "return": e.return_} for e in failed]
    return [{"trajectory": documents[index % len(failed)], "n": n, "seed": index} for index in range(count)]


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, str, float]:
    """Status, text and seconds of a request."""
    started = time.perf_counter()
    answer = await client.post("/v1/reflections", json=body)
    return answer.status_code, str(answer.json().get("text", "")), time.perf_counter() - started


def connected(served: Served, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=served.url, limits=limits, timeout=3600, trust_env=False)


async def all_at_once(served: Served, asked: Sequence[dict[str, Any]]) -> list[tuple[int, str, float]]:
    async with connected(served, len(asked)) as client:
        return await asyncio.gather(*(ask(client, body) for body in asked))


def measure_load(run: Path, export: Path, count: int, n: int, looped: int) -> dict[str, Any]:
    """The loop answers ``looped`` of the requests, evenly spread, since it is slow."""
    asked = bodies(run, count, n)
    model = RetrospectiveModel.load(export)
    few = list(range(0, count, max(1, count // looped)))

    def in_a_loop() -> list[str]:
        return [model.reflect(asked[i]["trajectory"], n, seed=asked[i]["seed"]).text for i in few]

    with serving(export, count) as served:
        asyncio.run(all_at_once(served, asked[:AT_ONCE]))  # both sides are warm
        model.reflect(asked[0]["trajectory"], n)
        started = time.perf_counter()
        answers = asyncio.run(all_at_once(served, asked))
        served_seconds = time.perf_counter() - started
    started = time.perf_counter()
    texts = in_a_loop()
    loop_seconds = time.perf_counter() - started
    seconds = sorted(seconds for _, _, seconds in answers)
    quantiles = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "requests": count,
        "n": n,
        "errors": sum(status != 200 for status, _, _ in answers),
        "other_texts": sum(answers[index][1] != text for index, text in zip(few, texts, strict=True)),
        "requests_per_second": count / served_seconds,
        "loop_requests_per_second": len(few) / loop_seconds,
        "ratio": count / served_seconds / (len(few) / loop_seconds),
        **{f"p{percent}_seconds": quantiles[percent - 1] for percent in (50, 95, 99)},
    }


def measure_memory(run: Path, export: Path, count: int, n: int) -> dict[str, Any]:
    """Resident memory of the server, in MiB, after each tenth of the requests."""
    asked = bodies(run, count, n)

    async def sustained(served: Served) -> tuple[list[float], int]:
        memory: list[float] = []
        errors = 0
        left = iter(asked)

        async def client(http: httpx.AsyncClient, part: list[dict[str, Any]]) -> int:
            return sum([(await ask(http, body))[0] != 200 for body in part])

        async with connected(served, AT_ONCE) as http:
            for tenth in range(10):
                size = count * (tenth + 1) // 10 - count * tenth // 10
                part = [next(left) for _ in range(size)]
                errors += sum(await asyncio.gather(*(client(http, part[i::AT_ONCE]) for i in range(AT_ONCE))))
                memory.append(served.mebibytes)
                print(f"{tenth + 1} of 10 parts of {count} requests: {memory[-1]:.0f} MiB", flush=True)
        return memory, errors

    with serving(export, AT_ONCE) as served:
        memory, errors = asyncio.run(sustained(served))
    return {"requests": count, "errors": errors, "mebibytes": memory, "growth": max(memory[5:]) / max(memory[:5]) - 1}


def measure_outcomes(run: Path, export: Path, kills: int, seed: int) -> dict[str, Any]:
    """Confirmed outcomes, and those of them that the buffer does not have."""
    rng = random.Random(seed)
    asked = bodies(run, 256, 2)
    confirmed: dict[str, float] = {}

    async def use(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
            while True:
                body = asked[rng.randrange(len(asked))] | {"seed": rng.randrange(10**9)}
                answer = (await client.post("/v1/reflections", json=body)).raise_for_status().json()
                value = round(rng.random(), 3)
                outcome = {"reflection_id": answer["reflection_id"], "return": value}
                reported = (await client.post("/v1/outcomes", json=outcome)).raise_for_status().json()
                confirmed[reported["episode_id"]] = value

    async def until_killed(served: Served) -> None:
        before = len(confirmed)
        users = [asyncio.create_task(use(served.url)) for _ in range(CLIENTS)]
        while len(confirmed) == before and not any(user.done() for user in users):
            await asyncio.sleep(0.05)
        await asyncio.sleep(rng.uniform(0.0, 3.0))
        served.process.send_signal(signal.SIGKILL)
        for failure in await asyncio.gather(*users, return_exceptions=True):
            if not isinstance(failure, httpx.TransportError):  # anything else than a server that is gone
                raise failure if isinstance(failure, BaseException) else AssertionError("a user stopped")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "buffer.sqlite"
        for number in range(kills):
            with serving(export, AT_ONCE, "--buffer", str(file)) as served:
                asyncio.run(until_killed(served))
            print(f"{number + 1} of {kills} kills: {len(confirmed)} outcomes confirmed", flush=True)
        with ReplayBuffer(f"sqlite:///{file}", create=False) as buffer:
            kept = {episode.id: episode.return_ for episode in buffer.episodes()}
    lost = [id for id, value in confirmed.items() if kept.get(id) != value]
    return {"kills": kills, "confirmed": len(confirmed), "lost": len(lost)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All figures, as plain JSON."""
    started = time.perf_counter()
    export = RunFolder(given.run).export
    found: dict[str, Any] = {"load": measure_load(given.run, export, given.requests, given.n, given.looped)}
    checks = [
        Check("times as many requests a second as in a loop", found["load"]["ratio"], LEAST_RATIO, at_least=True),
        Check("answers under load without a reflection", found["load"]["errors"], 0),
        Check("texts that differ from the loop's", found["load"]["other_texts"], 0),
    ]
    if given.sustained:
        memory = found["memory"] = measure_memory(given.run, export, given.sustained, given.n)
        checks.append(Check("growth of the highest memory in the second half", memory["growth"], MOST_GROWTH))
        checks.append(Check("answers of the sustained load without a reflection", memory["errors"], 0))
    if given.kills:
        found["outcomes"] = measure_outcomes(given.run, export, given.kills, given.seed)
        checks.append(Check("confirmed outcomes that were lost", found["outcomes"]["lost"], 0))
        checks.append(Check("confirmed outcomes", found["outcomes"]["confirmed"], given.kills, at_least=True))
    return {
        **found,
        "checks": [check.to_json() for check in checks],
        "machine": machine(),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(result: dict[str, Any]) -> Table:
    """The figures for people to read."""
    drawn = Table("", "", title="retro serve")
    load = result["load"]
    drawn.add_row(f"{load['requests']} requests at once, n = {load['n']}", f"{load['requests_per_second']:.1f} /s")
    drawn.add_row("the engine in a loop", f"{load['loop_requests_per_second']:.1f} /s")
    drawn.add_row("p50, p95, p99", ", ".join(f"{load[f'p{p}_seconds']:.1f} s" for p in (50, 95, 99)))
    if memory := result.get("memory"):
        sizes = ", ".join(f"{max(part):.0f} MiB" for part in (memory["mebibytes"][:5], memory["mebibytes"][5:]))
        drawn.add_row(f"highest memory in each half of {memory['requests']} requests", sizes)
    if outcomes := result.get("outcomes"):
        drawn.add_row(f"outcomes confirmed before {outcomes['kills']} kills", str(outcomes["confirmed"]))
        drawn.add_row("lost", str(outcomes["lost"]))
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--requests", type=int, default=1000, help="sent at once")
    parser.add_argument("--looped", type=int, default=100, help="of these requests, how many the loop answers")
    parser.add_argument("-n", type=int, default=8, help="reflections drawn for a request")
    parser.add_argument("--sustained", type=int, default=10_000, help="requests of the sustained load; 0: none")
    parser.add_argument("--kills", type=int, default=20, help="0: none")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.requests < 2 or given.looped < 1 or given.sustained < 0 or given.kills < 0:
        parser.error("--requests must be 2 or more, --looped 1 or more, --sustained and --kills not negative")
    quieten()
    result = measure(given)
    written = sys.argv[1:] if arguments is None else list(arguments)
    result = {"command": shlex.join(["python", "benchmarks/serving.py", *written]), **result}
    return report(result, table(result), given.json)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
