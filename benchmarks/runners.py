"""How much faster a collection is in several processes: ``processes`` or ``ray`` against ``local``, ratios in one run.

    python benchmarks/runners.py --json FILE [--runner processes] [--workers 2] [--tasks 200] [--repeats 3]
        [--scripted] [key.sub=value …]

Three lines, each side in turn. *collect* is the whole stage in a new run folder: loading, starting the workers,
playing, reflecting, the buffer. *play* is plain retry by an actor that is loaded, in workers that run. *scripted* is
plain retry by a rule that takes no time (of ``examples/extensions``), so what an episode takes longer than in one
process is what it costs to send it to a worker and back. Exits with 1 unless both sides played the same episodes, two
processes collect at least 1.6 times as fast (with ``--workers 2``), and a scripted episode takes at most 5 ms longer.
Nothing else should run on the machine, since both sides need its cores. ``--scripted`` measures only that line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks.pipeline import machine
from benchmarks.pipeline_timing import Check, Line, Phases, Stopwatch, alternate, ratio_table, report
from retro.buffer.store import ReplayBuffer
from retro.cli.errors import one_line_errors
from retro.cli.logs import quieten
from retro.config import RunConfig, build, load_config
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.stage import run_stage
from retro.training.collect import STAGE
from retro.types import Episode, Split

LEAST_RATIO = 1.6
"""Of the episodes a second of one process, with two."""
MOST_OVERHEAD_MS = 5.0
"""Of an episode in a worker."""
WARM_UP_TASKS = 16
SCRIPTED = "examples/extensions/extensions.yaml"

Sides = tuple[RunConfig, RunConfig]
"""The config of one process, and that of several."""


class Played:
    """What each side played, to be compared."""

    def __init__(self) -> None:
        self._first: dict[str, object] = {}
        self.equal = self.compared = 0

    def compare(self, line: str, episodes: object) -> None:
        self.equal += self._first.setdefault(line, episodes) == episodes
        self.compared += 1


def collect_stage(config: RunConfig, played: Played) -> Phases:
    """The whole stage, once, in a run folder of its own."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as runs:
        config = config.model_copy(update={"runs": runs})
        with watch.lap("collect"):
            run_stage(STAGE, config)
        with ReplayBuffer(config.buffer_url, create=False) as buffer:
            watch.amount("collect", buffer.count())
            played.compare("collect", buffer.digest())
    return watch.phases


def play_retries(config: RunConfig, runner: Runner, parts: PlayerParts, tasks: int) -> list[list[Episode]]:
    """Plain retry of the first train tasks, as many attempts as a collection has."""
    chosen = parts.taskset(config.environment).tasks(Split.TRAIN, tasks)
    return asyncio.run(collect(runner, chosen, Plan((config.seed, "benchmark"), config.collect.attempts)))


def collect_line(sides: Sides, repeats: int, played: Played) -> Line:
    one, several = sides
    for config in sides:
        collect_stage(config, Played())
    both = alternate(lambda _: collect_stage(one, played), lambda _: collect_stage(several, played), repeats)
    return both("collect, the whole stage", "episodes/s", ["collect"])


def play_line(name: str, sides: Sides, tasks: int, repeats: int, played: Played) -> Line:
    with ExitStack() as opened:
        runners: list[tuple[Runner, PlayerParts]] = []
        for config in sides:
            parts = opened.enter_context(PlayerParts(config.device))
            runner: Runner = build(config.runner, spec=PlayerSpec.of(config), parts=parts)
            runners.append((opened.enter_context(closing(runner)), parts))
            play_retries(config, *runners[-1], WARM_UP_TASKS)

        def play(side: int) -> Phases:
            watch = Stopwatch()
            with watch.lap("play"):
                trees = play_retries(sides[side], *runners[side], tasks)
            watch.amount("play", sum(map(len, trees)))
            played.compare(name, trees)
            return watch.phases

        return alternate(lambda _: play(0), lambda _: play(1), repeats)(name, "episodes/s", ["play"])


def overhead_ms(line: Line) -> float:
    """The median of the time that an episode takes longer in the workers than in this process."""
    return median(
        1000 * (ours.wall_seconds / ours.amount - one.wall_seconds / one.amount)
        for one, ours in zip(line.naive, line.ours, strict=True)
    )


def measure(sides: Sides | None, scripted: Sides, tasks: int, repeats: int) -> dict[str, Any]:
    """All figures, as plain JSON; those of the scripted actor alone without ``sides``."""
    started, load, played = perf_counter(), os.getloadavg(), Played()
    lines = []
    if sides is not None:
        lines += [collect_line(sides, repeats, played), play_line("play, all started", sides, tasks, repeats, played)]
    lines.append(play_line("scripted, all started", scripted, tasks, repeats, played))
    several = (sides or scripted)[1]
    return {
        "lines": [line.to_json() for line in lines],
        "checks": [check.to_json() for check in checks(lines, played, several.runner.processes)],
        "tasks": tasks,
        "runner": several.runner.chosen,
        "processes": several.runner.processes,
        "repeats": repeats,
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "seconds": round(perf_counter() - started, 1),
        "config": several.model_dump(mode="json"),
    }


def checks(lines: Sequence[Line], played: Played, processes: int) -> list[Check]:
    found = [Check("of the passes played the same episodes", played.equal / played.compared, 1.0, at_least=True)]
    overhead = overhead_ms(lines[-1])
    found.append(Check("ms that a scripted episode takes longer in the workers", overhead, MOST_OVERHEAD_MS))
    if processes == 2 and len(lines) > 1:
        name = "times as many episodes a second in a collection by two processes"
        found.append(Check(name, lines[0].ratio, LEAST_RATIO, at_least=True))
    return found


def table(result: dict[str, Any]) -> Table:
    """The figures for people to read."""
    title = f"{result['tasks']} tasks, {result['processes']} processes; medians of {result['repeats']}"
    return ratio_table(title, "local", result["runner"], result["lines"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument(
        "--runner", choices=("processes", "ray"), default="processes", help="the runner of the one side"
    )
    parser.add_argument("--scripted", action="store_true", help="measure only what an episode costs by itself")
    parser.add_argument("--workers", type=int, default=2, help="processes of the one side")
    parser.add_argument("--tasks", type=int, default=200, help="train tasks that are played")
    parser.add_argument("--repeats", type=int, default=3, help="measured passes of each side, after a warm-up")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    given = parser.parse_args(arguments)
    if min(given.workers, given.tasks, given.repeats) < 1:
        parser.error("--workers, --tasks and --repeats must be 1 or more")
    shared = ["device=cpu", f"environment.tasks.train={given.tasks}", "collect.splits=[train]", *given.overrides]
    runners = ("runner=local", f"runner={{kind: {given.runner}, workers: {given.workers}}}")
    one, several = (load_config(given.config, [*shared, runner]) for runner in runners)
    rule, rule_several = (load_config(SCRIPTED, [*shared[:2], runner]) for runner in runners)
    quieten()  # the worker processes, too
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    sides = None if given.scripted else (one, several)
    result = measure(sides, (rule, rule_several), given.tasks, given.repeats)
    written = sys.argv[1:] if arguments is None else list(arguments)
    result = {"command": shlex.join(["python", "benchmarks/runners.py", *written]), **result}
    return report(result, table(result), given.json)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
