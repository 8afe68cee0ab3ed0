"""ALFWorld: the cached engine beside TextWorld's own, and the memory of workers that are replaced or are not.

python benchmarks/alfworld_engine.py ~/.cache/alfworld/json_2.1.1/valid_seen
python benchmarks/alfworld_engine.py GAMES.parquet

Engines play the same commands (walkthroughs, with a look and an inventory after each) and must say the same; times are
CPU seconds of one process, medians over the repeats. Exits with 1 if a transcript differs or steps are not 3 times
faster.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where ``alfworld`` is not the package

from retro.envs.alfworld import AlfworldTasks
from retro.envs.alfworld.engine import CachedGame, Game, Scene, UpstreamGame, _read_grammar
from retro.envs.alfworld.games import GameData, open_games
from retro.envs.alfworld.translation import translate
from retro.types import Split, Task

LEAST_RATIO = 3.0


@dataclass
class Times:
    """CPU seconds."""

    start: list[float] = field(default_factory=list)
    """Of a game that this process plays for the first time: load and reset."""
    again: list[float] = field(default_factory=list)
    """Of the same game once more."""
    step: list[float] = field(default_factory=list)
    """Means over the steps of one play."""


def play(make: Callable[[dict[str, str]], Game], game: GameData, times: Times) -> list[Scene]:
    """Play ``game``; its transcript."""
    translate.cache_clear()
    _read_grammar.cache_clear()
    commands = [said for command in game.walkthrough for said in ("look", "inventory", command)]
    transcripts = []
    for starts in (times.start, times.again):
        began = time.process_time()
        played = make(game.for_engine)
        scenes = [played.start()]
        starts.append(time.process_time() - began)
        began = time.process_time()
        scenes += [played.step(command) for command in commands]
        times.step.append((time.process_time() - began) / len(commands))
        played.close()
        transcripts.append(scenes)
    assert transcripts[0] == transcripts[1]
    return transcripts[0]


def compare(games: list[GameData], repeats: int) -> bool:
    """Print both engines' times; whether they agree and the ratio is reached. No translation of a game is kept."""
    ours, theirs = Times(), Times()
    agree = True
    for _ in range(repeats):
        for game in games:
            with tempfile.TemporaryDirectory() as cache:
                os.environ["RETRO_CACHE"] = cache
                agree &= play(CachedGame, game, ours) == play(UpstreamGame, game, theirs)
    print(f"{len(games)} games x {repeats} repeats; transcripts {'agree' if agree else 'DIFFER'}")
    for name, times in {"TextWorld's own": theirs, "cached": ours}.items():
        print(
            f"{name:>16}: load and reset {median(times.start):.3f} s (once more {median(times.again):.3f} s), "
            f"{1 / median(times.step):,.0f} steps a second"
        )
    ratio = median(theirs.step) / median(ours.step)
    print(f"{'ratio':>16}: start {median(theirs.start) / median(ours.start):.1f}, steps {ratio:.1f}")
    return agree and ratio >= LEAST_RATIO


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_memory(source: str, count: int, games_per_worker: int) -> None:
    """One worker plays ``count`` games, one after the other."""
    tasks = AlfworldTasks({"test": source}, workers=1, games_per_worker=games_per_worker)
    resident: list[float] = []
    pids: set[int] = set()
    try:
        for task in tasks.tasks(Split.TEST, count):
            play_out(tasks, task)
            for worker in tasks.pool.workers:
                pids.add(worker.pid)
                resident.append(resident_mib(worker.pid))
    finally:
        tasks.close()
    print(
        f"{count} games, a new worker every {games_per_worker}: {len(pids)} workers, resident at most "
        f"{max(resident):.0f} MiB, at the end {resident[-1]:.0f} MiB"
    )


def play_out(tasks: AlfworldTasks, task: Task) -> None:
    environment = tasks.make(task)
    environment.reset()
    for command in str(tasks.oracle(task)).partition(": ")[2].removesuffix(".").split("; "):
        _, _, terminated, _, _ = environment.step(command)
    assert terminated, f"{task.id}: its walkthrough does not win"
    environment.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of TASK/TRIAL/game.tw-pddl, or parquet file")
    parser.add_argument("--games", type=int, default=10, help="for the engines, evenly from the source (default 10)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-games", type=int, default=100, help="for the memory; 0: not measured (default 100)")
    arguments = parser.parse_args()
    games = open_games(arguments.source)
    ids = list(games.kinds)
    chosen = [games.load(id) for id in ids[:: max(1, len(ids) // arguments.games)][: arguments.games]]
    reached = compare(chosen, arguments.repeats)
    if arguments.memory_games:
        for games_per_worker in (20, 100):
            measure_memory(arguments.source, min(arguments.memory_games, len(ids)), games_per_worker)
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
