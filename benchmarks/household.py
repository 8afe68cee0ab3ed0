"""Steps a second of the household on one core, resets included: a scripted walk through 2,000 rooms.

python benchmarks/household.py
"""

from __future__ import annotations

import time

from retro.envs import make_taskset
from retro.types import Split


def main() -> None:
    taskset = make_taskset("household")
    tasks = taskset.tasks(Split.TRAIN, 2000)
    began = time.process_time()
    rooms = [taskset.make(task) for task in tasks]
    made = time.process_time() - began
    steps = 0
    began = time.process_time()
    for room in rooms:
        opening, _ = room.reset()
        ended = False
        for place in opening.splitlines()[0].split()[1::2]:
            for action in (f"go to {place} 1", f"open {place} 1", "look", f"take apple 1 from {place} 1"):
                if not ended:
                    _, _, terminated, truncated, _ = room.step(action)
                    ended = terminated or truncated
                    steps += 1
    seconds = time.process_time() - began
    print(f"{steps / seconds:,.0f} steps a second of CPU, {1e6 * made / len(tasks):.0f} µs to make a room")


if __name__ == "__main__":
    main()
