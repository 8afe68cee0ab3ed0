"""Fresh training samples without end, for both models: every batch is a function of (seed, step)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from retro.envs.household import Household, World, draw_world, know_all
from retro.types import Split, Step, Task, derive_seed
from scripts.small_models.household import reflections
from scripts.small_models.household.demonstrator import Demonstrator

_BUILD_SEEDS = 1_000_000_000
"""Rooms of the pipeline's splits have seeds below this."""


@dataclass(frozen=True)
class Play:
    """One episode of the demonstrator: the notes it had, what it did, what came of it."""

    world: World
    opening: str
    notes: tuple[str, ...]
    steps: tuple[Step, ...]
    return_: float
    success: bool


def play(world: World, notes: Sequence[str], rng: random.Random) -> Play:
    room = Household(Task("household", "build", Split.TRAIN), world)
    opening, _ = room.reset()
    demonstrator = Demonstrator(world, notes, rng)
    steps: list[Step] = []
    while True:
        action = demonstrator.act()
        observation, reward, terminated, truncated, _ = room.step(action)
        demonstrator.see(observation)
        steps.append(Step(action, observation, reward))
        if terminated or truncated:
            total = sum(step.reward for step in steps)
            return Play(world, opening, tuple(notes), tuple(steps), total, terminated)


def plays(key: tuple[str | int, ...], smallest: int, largest: int) -> list[Play]:
    """Up to four attempts at one room; the reflections between them come from every kind of writer."""
    rng = random.Random(derive_seed(*key))
    world = draw_world(_BUILD_SEEDS + rng.getrandbits(40), rng.randint(smallest, largest), rng.choice((2, 2, 3, 4)))
    notes: list[str] = []
    if rng.random() < 0.5:
        notes = [random_note(world, rng) for _ in range(rng.randint(1, 3))]
    played: list[Play] = []
    for _ in range(4):
        attempt = play(world, notes[-3:], rng)
        played.append(attempt)
        if attempt.success:
            break
        notes.append(note_on(attempt, rng))
    return played


def note_on(attempt: Play, rng: random.Random) -> str:
    """A reflection by one of several writers: the base model's mixture, a thorough one, the one who knows."""
    draw = rng.random()
    found = reflections.find(attempt.world, attempt.steps, attempt.notes)
    if draw < 0.45:
        return reflections.write(attempt.world, attempt.steps, attempt.notes, rng)
    if draw < 0.9:
        said = reflections.useful(attempt.world, found, rng, each=0.85)
        return said or reflections.vague(attempt.world, found, rng)
    return oracle_note(attempt.world, rng)


def random_note(world: World, rng: random.Random) -> str:
    """A note out of the blue, so that every form of advice is met in every situation."""
    if rng.random() < 0.15:
        return oracle_note(world, rng)
    said = []
    for thing in (*world.targets, "desklamp 1") if world.kind == "look" else world.targets:
        if rng.random() < 0.3:
            said.append(f"{thing} is in {rng.choice(world.places)}.")
    if rng.random() < 0.5:
        said.append(f"nothing in {' '.join(rng.sample(world.places, rng.randint(1, min(5, len(world.places)))))}.")
    if rng.random() < 0.5:
        said.append(f"try {' '.join(rng.sample(world.places, rng.randint(1, min(4, len(world.places)))))}.")
    if world.tools and rng.random() < 0.4:
        said.append(f"{rng.choice(world.tools)} is broken.")
    if world.tools and rng.random() < 0.4:
        said.append(f"use {rng.choice(world.tools)}.")
    if world.tools and rng.random() < 0.5:
        said.append(f"remember to {world.kind} it.")
    if rng.random() < 0.1 or not said:
        said.append(rng.choice(reflections.VAGUE))
    if rng.random() < 0.3:
        rng.shuffle(said)
    return " ".join(said)


def oracle_note(world: World, rng: random.Random) -> str:
    """What someone who knows the room would say, or only its first sentence."""
    whole = know_all(world)
    return whole if rng.random() < 0.7 else whole.partition(". ")[0].rstrip(".") + "."
