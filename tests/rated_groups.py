"""Groups of reflections on real household failures, with outcomes that a model can learn.

Whether a reflection helps shows in its words: ``GOOD`` ones have a retry that gains, ``BAD`` ones do not.
"""

from __future__ import annotations

import random

from retro.buffer.store import ReplayBuffer
from retro.envs import make_taskset
from retro.types import Episode, Reflection, Split, Step, StopReason, Task, Trajectory, derive_seed

GOOD = ("remember to clean it.", "remember to heat it.", "remember to cool it.")
BAD = ("you see nothing", "nothing happens", "it is closed")
TASKS = {Split.TRAIN: 12, Split.VALIDATION: 6, Split.TEST: 6}


def failed_play(task: Task) -> Trajectory:
    """A household episode in which somebody only walks about."""
    environment = make_taskset(task.environment).make(task)
    opening, _ = environment.reset()
    places = opening.splitlines()[0].removeprefix("places: ").split()
    rng = random.Random(derive_seed(task.id))
    steps = []
    truncated = False
    while not truncated:
        start = 2 * rng.randrange(len(places) // 2)
        action = f"go to {places[start]} {places[start + 1]}"
        observation, reward, _, truncated, _ = environment.step(action)
        steps.append(Step(action, observation, reward))
    return Trajectory(opening, tuple(steps))


def group_of(task: Task, texts: list[str]) -> list[Episode]:
    """A failed first attempt, and a retry after each text."""
    trajectory = failed_play(task)
    parent = Episode(f"{task.id}-0", task, 0, trajectory, 0.0, False, StopReason.HORIZON)
    return [parent] + [
        Episode(
            id=f"{task.id}-1-{index}",
            task=task,
            trial=1,
            trajectory=trajectory,
            return_=0.5 if text in GOOD else 0.0,
            success=False,
            stop=StopReason.HORIZON,
            parent=parent.id,
            reflection=Reflection(text, "base", index),
        )
        for index, text in enumerate(texts)
    ]


def fill(buffer: ReplayBuffer, tasks: dict[Split, int] | None = None, good: bool = True) -> None:
    """Groups of four: two texts that help (or none) and two that do not."""
    taskset = make_taskset("household")
    for split, count in (tasks or TASKS).items():
        for task in taskset.tasks(split, count):
            rng = random.Random(derive_seed("texts", task.id))
            texts = [*rng.sample(GOOD, 2), *rng.sample(BAD, 2)] if good else rng.sample(BAD, 3)
            rng.shuffle(texts)
            for episode in group_of(task, texts):
                buffer.add(episode)
