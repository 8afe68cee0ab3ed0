"""Probes of ALFWorld's small actors in the validation rooms: the gates that an actor must pass before it is used.

python -m scripts.small_models.alfworld.probes data/alfworld-small/actor --phrasing a --games FOLDER --tasks 100
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from retro.actors.local import LocalOptions
from retro.config import EnvironmentSection
from retro.envs.alfworld import AlfworldTasks
from retro.memory.window import WindowOptions
from retro.models.rounds import all_of
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.types import Episode, Reflection, Split, Task, derive_seed
from scripts.small_models.alfworld import ROOMS, STEPS
from scripts.small_models.alfworld.language import PHRASINGS, UNREAD, Advice, Phrasing, Says
from scripts.small_models.alfworld.plays import oracle_plan
from scripts.small_models.alfworld.view import View

RETRIES = 3
MANY = 6
"""Things in one place."""


class Probe:
    """Plays the validation tasks with notes of the caller's.

    Args:
        model: the actor's folder.
        games: the folder or Parquet file of the training games, which hold the validation rooms as well.
        count: how many tasks, drawn at random.
    """

    def __init__(self, model: str, games: str, count: int, concurrency: int = 128) -> None:
        options = {"data": {"validation": games}, "graded": True, "rooms": ROOMS, "steps": STEPS}
        self._environment = EnvironmentSection(name="alfworld", options=options, prompts="household")
        self._actor = LocalOptions(model=model, max_tokens=12, concurrency=concurrency)
        self.parts = PlayerParts()
        self.world: AlfworldTasks = self.parts.taskset(self._environment)  # type: ignore[assignment]
        every = self.world.tasks(Split.VALIDATION, self.world.count(Split.VALIDATION))
        drawn = sorted(every, key=lambda task: task.id)  # the same tasks, whatever the order of the environment
        self.tasks = random.Random(derive_seed("probes")).sample(drawn, min(count, len(drawn)))
        self.plans = {task.id: oracle_plan(self.world.oracle(task) or "") for task in self.tasks}

    def play(
        self, notes: Callable[[Task], Sequence[str]], name: str, temperature: float = 0.0, trial: int = 0
    ) -> dict[str, Episode]:
        """The episode of each task, with ``notes`` on the failures that are said to have come before, oldest first."""
        actor = self._actor.model_copy(update={"temperature": temperature})
        spec = PlayerSpec(self._environment, actor, WindowOptions())

        async def played() -> list[Episode]:
            runner = LocalRunner.from_options(LocalRunner.Options(), spec, self.parts)
            try:
                return await all_of(runner.play(attempt) for attempt in attempts)
            finally:
                runner.close()

        attempts = [
            Attempt(("probe", name), task, trial, path=tuple(Reflection(text, "probe") for text in notes(task)))
            for task in self.tasks
        ]
        return {episode.task.id: episode for episode in asyncio.run(played())}


def probe(model: str, games: str, phrasing: str, count: int) -> dict[str, float]:
    """The gates' figures, each a share of the tasks that it applies to."""
    probes = Probe(model, games, count)
    with probes.parts:
        alone = probes.play(lambda _: (), "alone")
        found = {
            "success at attempt 1": share(episode.success for episode in alone.values()),
            "possible actions": share(
                not step.observation.startswith("Nothing happens")
                for episode in alone.values()
                for step in episode.trajectory.steps
            ),
        }
        found |= taking(alone.values())
        openings = {id: View.of(episode.trajectory.opening) for id, episode in alone.items()}
        for words, says in (("", PHRASINGS[phrasing]), (", in sentences never read", UNREAD[phrasing])):
            for name, value in obedience(probes, openings, says).items():
                found[f"{name}{words}"] = value
        vague = probes.play(lambda task: [word(PHRASINGS[phrasing], [Advice(Says.VAGUE)], task)], "vague")
        found["gain by a vague note"] = share(e.success for e in vague.values()) - found["success at attempt 1"]
        oracle = probes.play(lambda task: [probes.world.oracle(task) or ""], "oracle", trial=1)
        found["failures repaired by the oracle's note"] = share(
            oracle[id].success for id, episode in alone.items() if not episode.success
        )
        solved = {id for id, episode in alone.items() if episode.success}
        for retry in range(1, RETRIES + 1):
            again = probes.play(lambda _: (), f"retry {retry}", temperature=1.0, trial=retry)
            solved |= {id for id, episode in again.items() if episode.success}
        found["gain by three sampled retries"] = len(solved) / len(alone) - found["success at attempt 1"]
    return {name: round(value, 3) for name, value in found.items()}


def taking(episodes: Iterable[Episode]) -> dict[str, float]:
    """What the actor does with empty hands after it saw the contents of a place, and where many things are among them.

    Returns:
        How often it takes the wanted thing where that is seen, and tries to take anything where it is not.
    """
    listed: dict[bool, list[bool]] = {False: [], True: []}
    absent: dict[bool, list[bool]] = {False: [], True: []}
    for episode in episodes:
        view = View.of(episode.trajectory.opening)
        for step, following in pairwise(episode.trajectory.steps):
            view.see(step.action, step.observation)
            if view.holding or view.shut or "you see" not in step.observation:
                continue
            contents = [thing for thing, place in view.where.items() if place == view.at]
            wanted = [f"take {thing} from {view.at}" for thing in view.wanted(view.goal.thing) if thing in contents]
            many = len(contents) >= MANY
            if wanted:
                listed[many].append(following.action in wanted)
            else:
                absent[many].append(following.action.startswith("take "))
    return {
        "takes the thing where it is seen": share(listed[False] + listed[True]),
        f"takes the thing among {MANY} or more": share(listed[True]),
        "takes anything where it is not seen": share(absent[False] + absent[True]),
        f"takes anything where {MANY} or more others are": share(absent[True]),
    }


def obedience(probes: Probe, openings: dict[str, View], says: Phrasing) -> dict[str, float]:
    """How often the actor does what one kind of advice asks for."""
    truth = {id: whereabouts(plan) for id, plan in probes.plans.items()}
    right = {id: Advice(Says.WHERE, (place,), thing) for id, (thing, place) in truth.items()}

    def rng(task: Task) -> random.Random:
        return random.Random(derive_seed("probe", task.id))

    def drawn(task: Task, most: int) -> tuple[str, ...]:
        others = [place for place in openings[task.id].places if place != truth[task.id][1]]
        return tuple(rng(task).sample(others, min(most, len(others))))

    def first_goes(advice: Callable[[Task], Advice], name: str) -> dict[str, list[str]]:
        played = probes.play(lambda task: [word(says, [advice(task)], task)], name)
        return {id: goes(episode) for id, episode in played.items()}

    by_id = {task.id: task for task in probes.tasks}
    where = first_goes(lambda task: right[task.id], "where")
    wrong = first_goes(lambda task: Advice(Says.WHERE, drawn(task, 1), truth[task.id][0]), "wrong")
    tries = first_goes(lambda task: Advice(Says.TRY, drawn(task, 2)), "tries")
    empty = first_goes(lambda task: Advice(Says.EMPTY, drawn(task, 6)), "empty")
    treated = [task for task in probes.tasks if openings[task.id].goal.verb]
    reminded = probes.play(
        lambda task: [word(says, [right[task.id], Advice(Says.TREAT, (openings[task.id].goal.verb or "cool",))], task)],
        "reminded",
    )
    return {
        "goes where the thing is said to be": share(where[id][:1] == [truth[id][1]] for id in where),
        "goes where it is wrongly said to be": share(wrong[id][:1] == list(drawn(by_id[id], 1)) for id in wrong),
        "tries the first place that is named": share(tries[id][:1] == list(drawn(by_id[id], 2))[:1] for id in tries),
        "leaves out six places in its first three goes": share(
            not set(empty[id][:3]) & set(drawn(by_id[id], 6)) for id in empty
        ),
        "treats the thing when it is reminded": share(
            any(step.action.startswith(openings[task.id].goal.verb) for step in reminded[task.id].trajectory.steps)
            for task in treated
        ),
    }


def whereabouts(plan: Sequence[str]) -> tuple[str, str]:
    """The thing that a plan takes first, and where from."""
    words = next(action for action in plan if action.startswith("take ")).split()
    return " ".join(words[1:3]), " ".join(words[4:6])


def word(phrasing: Phrasing, said: Sequence[Advice], task: Task) -> str:
    return phrasing.note(said, random.Random(derive_seed("word", task.id)))


def goes(episode: Episode) -> list[str]:
    actions = [step.action for step in episode.trajectory.steps]
    return [action.removeprefix("go to ") for action in actions if action.startswith("go to ")]


def share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found) if found else float("nan")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of what plays in the validation rooms."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model")
    made.add_argument("--phrasing", choices=list(UNREAD), default="a")
    made.add_argument("--games", default="data/alfworld/json_2.1.1/train")
    made.add_argument("--tasks", type=int, default=100)
    return made


def main() -> None:
    arguments = parser(__doc__).parse_args()
    print(json.dumps(probe(arguments.model, arguments.games, arguments.phrasing, arguments.tasks), indent=2))


if __name__ == "__main__":
    main()
