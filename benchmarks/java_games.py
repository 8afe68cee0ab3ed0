"""What ScienceWorld's and TextWorldExpress's engines cost: start, reset, steps a second, memory, solutions.

python benchmarks/java_games.py scienceworld            # the first 28 training tasks: all kinds but the two on genetics
python benchmarks/java_games.py textworld-express       # the first 160 training tasks
python benchmarks/java_games.py scienceworld --at-once 4
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from retro.envs.scienceworld import ScienceworldTasks
from retro.envs.textworld_express import TextworldExpressTasks
from retro.types import Split, Task

TASKS = {"scienceworld": (ScienceworldTasks, 28), "textworld-express": (TextworldExpressTasks, 160)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", choices=TASKS)
    parser.add_argument("--at-once", type=int, default=1, help="plays at once, each with an engine")
    asked = parser.parse_args()
    task_class, count = TASKS[asked.environment]
    tasks = task_class(steps=200, engines=asked.at_once)
    began = time.perf_counter()
    chosen = tasks.tasks(Split.TRAIN, count)
    tasks.make(chosen[0]).reset()
    print(f"the first play begins after {time.perf_counter() - began:.1f} s")
    tasks.close()

    began = time.perf_counter()
    solutions = {task.id: tasks.gold_path(task) for task in chosen}
    print(f"{(time.perf_counter() - began) / count:.2f} s to find a solution")

    resets: list[float] = []

    def play(task: Task) -> int:
        game = tasks.make(task)
        began = time.perf_counter()
        game.reset()
        resets.append(time.perf_counter() - began)
        for action in solutions[task.id]:
            info = game.step(action)[4]
        game.close()
        assert info["success"], task.id
        return len(solutions[task.id])

    with ThreadPoolExecutor(asked.at_once) as threads:
        list(threads.map(play, chosen))  # starts the engines, and lets Java compile
        resets.clear()
        began = time.perf_counter()
        steps = sum(threads.map(play, chosen))
        seconds = time.perf_counter() - began
    print(f"{steps / seconds:,.0f} steps a second, resets included; {1000 * sum(resets) / count:.0f} ms a reset")
    held = [resident_megabytes(engine.process.pid) for engine in tasks._engines._idle]
    print(f"{len(held)} engines of {min(held)} to {max(held)} MB")
    tasks.close()


def resident_megabytes(pid: int) -> int:
    """The memory of a process of this machine (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


if __name__ == "__main__":
    main()
