"""How large a buffer may be: what many writers add to it, how long its queries take, what a reader holds in memory.

    python benchmarks/scale.py --json FILE [--episodes 100000] [--writers 8] [--steps 8]
        [--databases sqlite postgresql]

Made-up tasks: a failed episode, four retries with reflections and a control each. The writers are processes, which add
one episode in one transaction at a time, as a collection does. Then a new process makes each query once, iterates over
what an epoch of training reads, and reads a thousand contexts at random, as PPO does. PostgreSQL is a server of the
tests' kind on this machine, without ``fsync``. The command exits with 1 if the process that reads needs more than 1
GiB, or if the databases differ in their content.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

from rich.table import Table
from sqlalchemy import func, select

from benchmarks.peers.protocol import resident_bytes, started
from retro.buffer.stats import buffer_stats
from retro.buffer.store import ReplayBuffer
from retro.buffer.views import StoredContexts, contexts, rated_reflections, sft_examples
from retro.cli.errors import one_line_errors
from retro.types import Episode, Recalled, Reflection, Split, Step, StopReason, Task, Trajectory, Usage, to_json

GROUP = 4
PER_TASK = GROUP + 2
"""Episodes: the first one, the retries, and a control."""
CONTEXTS = 1_000
MOST_GIB = 1.0
SPLITS = (Split.TRAIN,) * 8 + (Split.VALIDATION, Split.TEST)
WORDS = ("cabinet", "desk", "drawer", "fridge", "apple", "book", "mug", "you", "see", "nothing", "take", "open", "the")


def made_up(number: int, steps: int) -> list[Episode]:
    """The episodes of a task, parents first. The texts of a step are about as long as ALFWorld's."""
    draws = Random(f"scale {number}")
    task = Task("household", f"task-{number:07d}", SPLITS[number % len(SPLITS)], "pick")

    def text(words: int) -> str:
        return " ".join(draws.choices(WORDS, k=words))

    def episode(name: str, return_: float, parent: Episode | None = None, index: int | None = None) -> Episode:
        given = None if index is None else Reflection(text(40), "base", index, usage=Usage(900, 60))
        played = tuple(Step(text(4), text(25), thought=text(15)) for _ in range(steps))
        return Episode(
            id=f"{number:07d}-{name}",
            task=task,
            trial=0 if parent is None else 1,
            trajectory=Trajectory(text(60), played),
            return_=return_,
            success=return_ == 1.0,
            stop=StopReason.SUCCESS if return_ == 1.0 else StopReason.HORIZON,
            parent=None if parent is None else parent.id,
            reflection=given,
            recalled=Recalled() if given is None else Recalled((given.text,), ("reflection-0",)),
            usage=Usage(5000, 300),
        )

    first = episode("first", draws.choice((0.0, 0.5)))
    retries = [episode(f"retry-{index}", draws.choice((0.0, 0.5, 1.0)), first, index) for index in range(GROUP)]
    return [first, *retries, episode("control", draws.choice((0.0, 0.5)), first)]


def write(url: str, numbers: Sequence[int], steps: int) -> tuple[float, float, float]:
    """Add the episodes of some tasks; return when it began and ended (seconds since 1970), and its CPU seconds."""
    with ReplayBuffer(url) as buffer:
        began, cpu = time.time(), process_time()
        for number in numbers:
            for episode in made_up(number, steps):
                buffer.add(episode)
        return began, time.time(), process_time() - cpu


def count(items: Any) -> int:
    return sum(1 for _ in items)


def at_random(buffer: ReplayBuffer) -> int:
    stored = StoredContexts(buffer, contexts(buffer, (Split.VALIDATION,)))
    chosen = Random(0).choices(range(len(stored)), k=CONTEXTS)
    return count(stored[index] for index in chosen)


READS: dict[str, Callable[[ReplayBuffer], object]] = {
    "ratings: delta_return": lambda buffer: count(rated_reflections(buffer, "delta_return", (Split.TRAIN,))),
    "ratings: over_control": lambda buffer: count(rated_reflections(buffer, "over_control", (Split.TRAIN,))),
    "ratings: group": lambda buffer: count(rated_reflections(buffer, "group", (Split.TRAIN,))),
    "an epoch of sft": lambda buffer: count(sft_examples(buffer, "delta_return", 0.0)),
    "all contexts of ppo": lambda buffer: len(StoredContexts(buffer, contexts(buffer))),
    "1,000 contexts at random": at_random,
    "statistics": lambda buffer: [json.dumps(to_json(stats), sort_keys=True) for stats in buffer_stats(buffer)],
    "digest": lambda buffer: buffer.digest(),
}
"""Each with what must be equal in all databases."""


def read(url: str) -> dict[str, Any]:
    """Make every query, and measure this process."""
    with ReplayBuffer(url, create=False) as buffer:
        before = resident_bytes()
        laps, found = {}, {}
        for name, query in READS.items():
            lap = started()
            found[name] = query(buffer)
            laps[name] = lap()
        return {"laps": laps, "found": found, "bytes_before": before, "peak_bytes": resident_bytes(peak=True)}


def size(url: str) -> int:
    """Bytes of the database, with its log."""
    path = Path(url.removeprefix("sqlite:///"))
    if path.is_file():
        return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    with ReplayBuffer(url, create=False) as buffer:
        return int(buffer.query(select(func.pg_database_size(func.current_database()).label("bytes")))[0]["bytes"])


def measure(name: str, url: str, tasks: int, writers: int, steps: int) -> dict[str, Any]:
    """One database. The writers and the reader are processes of their own; with 0 writers, this process does it all."""
    ReplayBuffer(url).close()
    shares = [range(number, tasks, max(writers, 1)) for number in range(max(writers, 1))]
    if writers:
        with ProcessPoolExecutor(writers, mp_context=get_context("spawn")) as pool:
            laps = list(pool.map(write, [url] * writers, shares, [steps] * writers))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            reader = pool.submit(read, url).result()
    else:
        laps, reader = [write(url, shares[0], steps)], read(url)
    seconds = max(end for _, end, _ in laps) - min(begin for begin, _, _ in laps)
    episodes = tasks * PER_TASK
    return {
        "database": name,
        "episodes": episodes,
        "bytes": size(url),
        "write": {
            "wall_seconds": seconds,
            "cpu_seconds": sum(cpu for _, _, cpu in laps),
            "episodes_per_second": episodes / seconds,
        },
        **reader,
    }


def table(sides: Sequence[dict[str, Any]]) -> Table:
    drawn = Table(title=f"{sides[0]['episodes']:,} episodes: wall seconds (CPU seconds of the process)")
    drawn.add_column("")
    for side in sides:
        drawn.add_column(side["database"], justify="right")
    rows = {
        "added in a second, by all writers": lambda side: f"{side['write']['episodes_per_second']:,.0f}",
        "CPU time of an added episode, ms": lambda side: (
            f"{1000 * side['write']['cpu_seconds'] / side['episodes']:.2f}"
        ),
        "size, MiB": lambda side: f"{side['bytes'] / 2**20:,.0f}",
        "size of an episode, KiB": lambda side: f"{side['bytes'] / side['episodes'] / 2**10:.2f}",
    }
    for name, cell in rows.items():
        drawn.add_row(name, *map(cell, sides))
    for name in READS:
        laps = [side["laps"][name] for side in sides]
        drawn.add_row(name, *(f"{lap['wall_seconds']:.1f} ({lap['cpu_seconds']:.1f})" for lap in laps))
    drawn.add_row("memory of the reader, MiB", *(f"{side['peak_bytes'] / 2**20:,.0f}" for side in sides))
    drawn.add_row("before its first query, MiB", *(f"{side['bytes_before'] / 2**20:,.0f}" for side in sides))
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    from benchmarks.pipeline import machine  # it imports torch, which the process that is measured should not
    from benchmarks.pipeline_timing import Check, report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--episodes", type=int, default=100_000, help="rounded down to whole tasks of six")
    parser.add_argument("--writers", type=int, default=8, help="processes; 0: this one, which also reads")
    parser.add_argument("--steps", type=int, default=8, help="of an episode")
    databases = ("sqlite", "postgresql")
    parser.add_argument("--databases", nargs="+", choices=databases, default=["sqlite"], help="by default SQLite")
    given = parser.parse_args(arguments)
    began, load, sides = perf_counter(), os.getloadavg(), []
    with ExitStack() as opened:
        folder = opened.enter_context(TemporaryDirectory())
        for name in given.databases:
            url = f"sqlite:///{folder}/buffer.sqlite"
            if name == "postgresql":
                from tests.unit.buffer.postgresql_server import running_server

                url = opened.enter_context(running_server()).url("scale")
            sides.append(measure(name, url, max(1, given.episodes // PER_TASK), given.writers, given.steps))
    checks = [
        Check(f"{side['database']}: memory of the reader, GiB", side["peak_bytes"] / 2**30, MOST_GIB) for side in sides
    ]
    equal = sum(side["found"] == sides[0]["found"] for side in sides) / len(sides)
    checks.append(Check("databases with the same content", equal, 1.0, at_least=True))
    written = sys.argv[1:] if arguments is None else list(arguments)
    result = {
        "command": shlex.join(["python", "benchmarks/scale.py", *written]),
        "sides": sides,
        "checks": [check.to_json() for check in checks],
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "seconds": round(perf_counter() - began, 1),
    }
    return report(result, table(sides), given.json)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
