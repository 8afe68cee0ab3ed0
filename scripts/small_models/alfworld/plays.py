"""The demonstrator's plays of real games in the training rooms, kept in a file: one JSON line for each game.

What the demonstrator does depends on what its notes say and not on how they are worded, so notes are kept as advice and
are worded anew whenever a play is used.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from retro.envs.base import TaskSet
from retro.types import Step, Task, derive_seed
from scripts.small_models.alfworld import reflections
from scripts.small_models.alfworld.demonstrator import CHARACTERS, Character, Demonstrator
from scripts.small_models.alfworld.language import TOOLS, Advice, Says
from scripts.small_models.alfworld.view import Goal, View

logger = logging.getLogger(__name__)

VERSION = 3
"""Of the demonstrators and of the notes on their failures: one more whenever either changes."""
GAMES = 600
"""Games that a demonstrator plays, drawn at random; both play the same ones."""
CHAINS = 3
"""Chains of attempts at each game."""
ATTEMPTS = 3
WRITERS = {"mixed": 0.45, "thorough": 0.35, "oracle": 0.2}
"""Who writes the note on a failed attempt: the base model's mixture, one that says nearly all, one that knows all."""


@dataclass(frozen=True)
class Play:
    """One attempt of the demonstrator."""

    opening: str
    notes: tuple[tuple[Advice, ...], ...]
    steps: tuple[Step, ...]
    return_: float
    success: bool
    slips: tuple[int, ...] = ()
    """Steps, counted from 0, that the demonstrator did not mean: nobody should learn them."""


def write_plays(tasks: Sequence[Task], world: TaskSet, character: str, seed: int, file: Path) -> None:
    """Play every game that is drawn and that ``file`` does not hold yet, and append its chains."""
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = random.Random(seed).sample(sorted(tasks, key=lambda task: task.id), len(tasks))[:GAMES]
    random.Random(derive_seed("order", seed, character)).shuffle(drawn)  # two at once do not open the same games
    with file.open("a+b") as out:
        done = _whole_lines(out)
        left = [task for task in drawn if task.id not in done]
        began = time.monotonic()
        for number, task in enumerate(left, 1):
            rng = random.Random(derive_seed("plays", seed, character, task.id))
            chains = [_plain(one) for _ in range(CHAINS) for one in chain(task, world, character, rng)]
            out.write(json.dumps({"task": task.id, "plays": chains}).encode() + b"\n")
            out.flush()
            if number % 50 == 0 or number == len(left):
                minutes = (time.monotonic() - began) / 60
                logger.info(
                    "%d of %d games, %.0f minutes left", number, len(left), minutes / number * (len(left) - number)
                )


def read_plays(file: Path) -> list[Play]:
    """All plays of a file."""
    with file.open("rb") as lines:
        return [_play(plain) for line in lines if line.endswith(b"\n") for plain in json.loads(line)["plays"]]


def chain(task: Task, world: TaskSet, character: str, rng: random.Random) -> list[Play]:
    """Up to ``ATTEMPTS`` plays of one game, with a note on each failure; half of the chains begin with notes."""
    plan = oracle_plan(world.oracle(task) or "")
    played: list[Play] = []
    notes: list[tuple[Advice, ...]] = []
    if rng.random() < 0.5:
        view = View.of(_opening(task, world))
        notes = [tuple(random_note(view, plan, rng)) for _ in range(rng.randint(1, 3))]
    for _ in range(ATTEMPTS):
        played.append(play(task, world, notes[-3:], CHARACTERS[character], rng))
        if played[-1].success:
            break
        notes.append(tuple(note_on(played[-1], plan, rng)))
    return played


def play(
    task: Task, world: TaskSet, notes: Sequence[Sequence[Advice]], character: Character, rng: random.Random
) -> Play:
    """One attempt with these notes, the oldest first."""
    environment = world.make(task)
    try:
        opening, _ = environment.reset()
        demonstrator = Demonstrator(opening, notes, character, rng)
        steps: list[Step] = []
        slips: list[int] = []
        while True:
            action = demonstrator.act()
            observation, reward, terminated, truncated, _ = environment.step(action)
            demonstrator.see(observation)
            slips += [len(steps)] * demonstrator.slipped
            steps.append(Step(action, observation, reward))
            if terminated or truncated:
                total = sum(step.reward for step in steps)
                return Play(opening, tuple(map(tuple, notes)), tuple(steps), total, terminated, tuple(slips))
    finally:
        environment.close()


def _opening(task: Task, world: TaskSet) -> str:
    environment = world.make(task)
    try:
        return environment.reset()[0]
    finally:
        environment.close()


def oracle_plan(text: str) -> tuple[str, ...]:
    """The actions of the environment's oracle."""
    return tuple(action for action in text.partition(": ")[2].removesuffix(".").split("; ") if action)


def note_on(play: Play, plan: tuple[str, ...], rng: random.Random) -> list[Advice]:
    writer = rng.choices(list(WRITERS), list(WRITERS.values()))[0]
    if writer == "oracle" and plan:
        return [Advice(Says.PLAN, plan)]
    found = reflections.find(play.opening, play.steps, play.notes)
    if writer == "mixed":
        return reflections.write(found, rng)
    return reflections.useful(found, rng, each=0.9) or reflections.vague(found, rng)


def random_note(view: View, plan: tuple[str, ...], rng: random.Random) -> list[Advice]:
    """A note out of the blue, right or wrong, so that every kind of advice is met in every situation."""
    goal, places = view.goal, view.places
    if plan and rng.random() < 0.12:
        return [Advice(Says.PLAN, plan)]
    said: list[Advice] = []
    for thing, place in _whereabouts(goal, plan, rng):
        if rng.random() < 0.35:
            right = place in places and rng.random() < 0.5
            said.append(Advice(Says.WHERE, (place if right else rng.choice(places),), thing))
    if rng.random() < 0.3:
        said.append(Advice(Says.EMPTY, reflections.some(places, rng, 8)))
    if rng.random() < 0.35:
        said.append(Advice(Says.TRY, reflections.some(places, rng, 4)))
    if goal.verb and rng.random() < 0.35:
        said.append(Advice(Says.TREAT, (goal.verb,)))
    elif rng.random() < 0.05:
        said.append(Advice(Says.TREAT, (rng.choice(list(TOOLS)),)))
    if goal.kind == "two" and rng.random() < 0.4:
        said.append(Advice(Says.TOGETHER, (rng.choice(view.of_kind(goal.place)),)))
    if rng.random() < 0.15:
        said.append(Advice(Says.STORY, reflections.some(places, rng, 4)))
    if rng.random() < 0.1 or not said:
        said.append(Advice(Says.VAGUE))
    rng.shuffle(said)
    return said


def _whereabouts(goal: Goal, plan: Sequence[str], rng: random.Random) -> list[tuple[str, str]]:
    """The things that matter and their true places, as far as the plan tells; the numbers are guessed otherwise."""
    found = [(" ".join(words[1:3]), " ".join(words[4:6])) for words in map(str.split, plan) if words[0] == "take"]
    if goal.kind == "look":
        found.append((f"{goal.place} 1", ""))
    return found or [(f"{goal.thing} {rng.randint(1, 3)}", "")]


def _plain(play: Play) -> dict[str, Any]:
    return {
        "opening": play.opening,
        "notes": [[[advice.says, advice.names, advice.thing] for advice in note] for note in play.notes],
        "steps": [[step.action, step.observation, step.reward] for step in play.steps],
        "return": play.return_,
        "success": play.success,
        "slips": play.slips,
    }


def _play(plain: dict[str, Any]) -> Play:
    notes = tuple(
        tuple(Advice(Says(says), tuple(names), thing) for says, names, thing in note) for note in plain["notes"]
    )
    steps = tuple(Step(action, observation, reward) for action, observation, reward in plain["steps"])
    return Play(plain["opening"], notes, steps, plain["return"], plain["success"], tuple(plain["slips"]))


def _whole_lines(file: BinaryIO) -> set[str]:
    """The tasks of the lines of ``file``; an interrupted last line is cut off."""
    file.seek(0)
    done = set()
    end = 0
    for line in file:
        if line.endswith(b"\n"):
            done.add(json.loads(line)["task"])
            end += len(line)
    file.truncate(end)
    return done
