"""What a collection costs beside the bare client: calls a second and CPU time, against a server with 200 ms a call.

    python benchmarks/collection.py --json FILE [--episodes 448] [--concurrency 64] [--repeats 3]

A collection (household, one episode a task, buffer included), and a loop of ``AsyncOpenAI`` coroutines that make the
same calls (each after the one before it in its episode) and do nothing else. In turn, in one process; the server is
another one. Exits with 1 unless the collection makes at least 0.95 of the bare loop's calls a second, at less than 1 ms
more of CPU time a call.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table

from benchmarks.pipeline import machine
from benchmarks.pipeline_timing import Check, Line, Phases, Stopwatch, alternate, report
from retro.actors.openai import OpenAIActor, OpenAIOptions
from retro.buffer.store import ReplayBuffer
from retro.cli.errors import one_line_errors
from retro.envs import make_taskset
from retro.memory import ReflectionWindow
from retro.prompts import load_prompts
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.types import Actor, Completion, Prompt, Sampling, Split, Task
from tests.servers.processes import server_process

LEAST_RATE = 0.95
"""Of the bare loop's calls a second."""
MOST_CPU_MS = 1.0
"""Of CPU time a call beyond the bare loop's."""
MODEL, MAX_TOKENS, TIMEOUT_SECONDS = "scripted", 12, 60.0

Call = tuple[str, Sampling]


class Recorder:
    """Passes calls on, and keeps each episode's, in the order in which episodes began."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.episodes: dict[str, list[Call]] = {}

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        assert isinstance(prompt, str)
        self.episodes.setdefault(sampling.session, []).append((prompt, sampling))
        return await self._actor.complete(prompt, sampling)


def make_actor(url: str, concurrency: int) -> OpenAIActor:
    section = OpenAIOptions(
        model=MODEL,
        base_url=f"{url}/v1",
        max_tokens=MAX_TOKENS,
        temperature=1.0,
        timeout_seconds=TIMEOUT_SECONDS,
        concurrency=concurrency,
    )
    return OpenAIActor(section)


def play(actor: Actor, tasks: Sequence[Task], concurrency: int, folder: str) -> int:
    """Collect one episode a task into a buffer of its own; return the number of calls that were answered."""
    player = Player(
        make_taskset("household"),
        actor,
        load_prompts("household"),
        ReflectionWindow(3),
        Sampling(temperature=1.0, max_tokens=MAX_TOKENS),
    )
    with (
        closing(LocalRunner(player, concurrency)) as runner,
        tempfile.TemporaryDirectory(dir=folder) as place,
        ReplayBuffer(f"sqlite:///{Path(place) / 'buffer.sqlite'}") as buffer,
    ):
        trees = asyncio.run(collect(runner, tasks, Plan(("benchmark",), 1), journal=buffer))
    return sum(len(episode.trajectory.steps) for tree in trees for episode in tree)


def ask_bare(url: str, episodes: Sequence[Sequence[Call]], concurrency: int) -> int:
    """The same calls by the client alone; return how many were answered."""
    from openai import AsyncOpenAI

    async def main() -> int:
        async with AsyncOpenAI(api_key="none", base_url=f"{url}/v1", timeout=TIMEOUT_SECONDS) as client:
            left = iter(episodes)
            answered = 0

            async def worker() -> None:
                nonlocal answered
                for calls in left:
                    for prompt, sampling in calls:
                        answer = await client.chat.completions.create(
                            model=MODEL,
                            messages=[{"role": "user", "content": prompt}],
                            temperature=sampling.temperature,
                            top_p=sampling.top_p,
                            max_tokens=sampling.max_tokens,
                            seed=sampling.seed % 2**31,
                            stop=list(sampling.stop),
                        )
                        answered += answer.choices[0].message.content is not None

            async with asyncio.TaskGroup() as workers:
                for _ in range(concurrency):
                    workers.create_task(worker())
            return answered

    return asyncio.run(main())


def measure(episodes: int, concurrency: int, repeats: int, delay_seconds: float) -> dict[str, Any]:
    """All figures, as plain JSON."""
    started, load = perf_counter(), os.getloadavg()
    tasks = make_taskset("household").tasks(Split.TRAIN, episodes)
    arguments = ["--delay-seconds", str(delay_seconds)]
    with (
        tempfile.TemporaryDirectory() as folder,
        server_process("tests.servers.completion_server", arguments, Path(folder) / "server.log", "/health") as url,
    ):
        recorder = Recorder(make_actor(url, concurrency))
        play(recorder, tasks, concurrency, folder)
        calls = list(recorder.episodes.values())
        ask_bare(url, calls[: 2 * concurrency], concurrency)

        def bare(number: int) -> Phases:
            watch = Stopwatch()
            with watch.lap("calls"):
                answered = ask_bare(url, calls, concurrency)
            watch.amount("calls", answered)
            return watch.phases

        def ours(number: int) -> Phases:
            watch, actor = Stopwatch(), make_actor(url, concurrency)
            with watch.lap("calls"):
                answered = play(actor, tasks, concurrency, folder)
            watch.amount("calls", answered)
            return watch.phases

        line = alternate(bare, ours, repeats)("calls", "calls/s", ["calls"])
    return {
        **figures(line),
        "checks": [check.to_json() for check in checks(line, sum(map(len, calls)))],
        "sizes": {
            "episodes": episodes,
            "calls": sum(map(len, calls)),
            "concurrency": concurrency,
            "delay_seconds": delay_seconds,
            "most_calls_per_second": concurrency / delay_seconds if delay_seconds else None,
            "mean_prompt_characters": round(sum(len(text) for own in calls for text, _ in own) / sum(map(len, calls))),
        },
        "repeats": repeats,
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "seconds": round(perf_counter() - started, 1),
    }


def cpu_ms(line: Line) -> dict[str, float]:
    """Milliseconds of this process's CPU time a call, medians."""
    sides = {"bare": line.naive, "ours": line.ours}
    return {name: median(1000 * lap.cpu_seconds / lap.amount for lap in laps) for name, laps in sides.items()}


def figures(line: Line) -> dict[str, Any]:
    told = line.to_json()
    return {
        "calls_per_second": {"bare": told["naive"], "ours": told["ours"]},
        "ratio": told["ratio"],
        "ratio_of_repeats": told["ratio_of_repeats"],
        "cpu_ms_per_call": cpu_ms(line),
        "laps": {"bare": [asdict(lap) for lap in line.naive], "ours": [asdict(lap) for lap in line.ours]},
    }


def checks(line: Line, calls: int) -> list[Check]:
    cpu = cpu_ms(line)
    answered = min(lap.amount for lap in (*line.naive, *line.ours)) / calls
    return [
        Check("of the calls were answered in every lap", answered, 1.0, at_least=True),
        Check("of the bare loop's calls a second", line.ratio, LEAST_RATE, at_least=True),
        Check("ms of CPU a call beyond the bare loop's", cpu["ours"] - cpu["bare"], MOST_CPU_MS),
    ]


def table(result: dict[str, Any]) -> Table:
    """The figures for people to read."""
    sizes = result["sizes"]
    drawn = Table(
        title=f"{sizes['calls']:,} calls of {sizes['episodes']} episodes, {sizes['concurrency']} at once, "
        f"{1000 * sizes['delay_seconds']:.0f} ms a call; medians of {result['repeats']} repeats"
    )
    for name in ("", "bare client", "collection", "ratio", "of single repeats"):
        drawn.add_column(name, justify="left" if not name else "right")
    rate, cpu, (low, high) = result["calls_per_second"], result["cpu_ms_per_call"], result["ratio_of_repeats"]
    drawn.add_row(
        "calls/s", f"{rate['bare']:.1f}", f"{rate['ours']:.1f}", f"{result['ratio']:.3f}", f"{low:.3f} – {high:.3f}"
    )
    drawn.add_row("CPU a call, ms", f"{cpu['bare']:.2f}", f"{cpu['ours']:.2f}", f"{cpu['ours'] / cpu['bare']:.2f}", "")
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--episodes", type=int, default=448, help="episodes of one lap")
    parser.add_argument("--concurrency", type=int, default=64, help="episodes at once")
    parser.add_argument("--repeats", type=int, default=3, help="measured laps of each side, after a warm-up")
    parser.add_argument("--delay-seconds", type=float, default=0.2, help="what the server takes for a call")
    given = parser.parse_args(arguments)
    if min(given.episodes, given.concurrency, given.repeats) < 1 or given.delay_seconds < 0:
        parser.error("--episodes, --concurrency and --repeats must be 1 or more, --delay-seconds 0 or more")
    result = measure(given.episodes, given.concurrency, given.repeats, given.delay_seconds)
    written = sys.argv[1:] if arguments is None else list(arguments)
    result = {"command": shlex.join(["python", "benchmarks/collection.py", *written]), **result}
    return report(result, table(result), given.json)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
