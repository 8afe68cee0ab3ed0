"""Reflections of mixed worth about failed trajectories: what the quickstart's retrospective base model is trained on.

``useful`` ones say something true that was learnt and what to try; the others are vague, repeat what was done, or are
wrong. Which of them help, the base model is never told.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from retro.envs.household import LAMP, TOOLS, World
from retro.types import Step
from scripts.small_models.household.demonstrator import Advice, names

MIXTURE = {"useful": 0.45, "vague": 0.18, "repetitive": 0.12, "wrong": 0.25}
VAGUE = ("be more careful.", "try again.", "do not waste steps.", "think before you act.", "search all places.")


@dataclass(frozen=True)
class Findings:
    """What a failed trajectory shows, together with the notes its actor had."""

    seen: dict[str, str]
    """Where the things that matter were seen."""
    empty: list[str]
    """Places visited in which nothing that matters was seen, in order."""
    fresh: list[str]
    """Places that neither this trajectory nor the notes rule out."""
    broken: list[str]
    tools: list[str]
    """Tools that may still work."""
    left_out: bool
    """The object was put down, or the steps ran out, without the treatment ever being tried."""
    visited: list[str]


def find(world: World, steps: Sequence[Step], notes: Sequence[str]) -> Findings:
    matters = (*world.targets, LAMP) if world.kind == "look" else world.targets
    seen: dict[str, str] = {}
    visited: list[str] = []
    broken: list[str] = []
    treated = False
    at = ""
    for step in steps:
        if step.action.startswith("go to "):
            at = step.action.removeprefix("go to ")
        if step.observation.startswith("you see") and at not in visited:
            visited.append(at)
            seen.update((thing, at) for thing in names(step.observation) if thing in matters and thing not in seen)
        if step.observation == "it is broken" and at not in broken:
            broken.append(at)
        treated = treated or step.action.partition(" ")[0] in TOOLS
    told = Advice.of(notes)
    empty = [place for place in visited if place not in seen.values() and place != world.goal]
    known_empty = {*visited, *told.nothing_in, world.goal}
    fresh = [place for place in world.places if place not in known_empty]
    tools = [tool for tool in world.tools if tool not in broken and tool not in told.broken]
    took = any(step.action.startswith("take") for step in steps)
    return Findings(seen, empty, fresh, broken, tools, world.kind in TOOLS and took and not treated, visited)


def write(world: World, steps: Sequence[Step], notes: Sequence[str], rng: random.Random) -> str:
    """One reflection, of a worth drawn from ``MIXTURE``."""
    found = find(world, steps, notes)
    worth = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
    said = {"useful": useful, "vague": vague, "repetitive": repetitive, "wrong": wrong}[worth](world, found, rng)
    return said or vague(world, found, rng)


def useful(world: World, found: Findings, rng: random.Random, each: float = 0.6) -> str:
    """Some of the true things that could be said, each with probability ``each``; places to try are drawn evenly."""
    said = [f"{thing} is in {place}." for thing, place in found.seen.items() if rng.random() < each]
    if found.empty and rng.random() < each:
        said.append(f"nothing in {' '.join(found.empty[:4])}.")
    if found.fresh and rng.random() < each:
        some = rng.sample(found.fresh, min(len(found.fresh), rng.randint(1, 3)))
        said.append(f"try {' '.join(some)}.")
    if found.broken and rng.random() < each:
        said.append(f"{found.broken[0]} is broken.")
    if found.broken and found.tools and rng.random() < each:
        said.append(f"use {found.tools[0]}.")
    if found.left_out and rng.random() < each:
        said.append(f"remember to {world.kind} it.")
    return " ".join(said)


def vague(world: World, found: Findings, rng: random.Random) -> str:
    return " ".join(rng.sample(VAGUE, rng.randint(1, 2)))


def repetitive(world: World, found: Findings, rng: random.Random) -> str:
    places = found.visited[: rng.randint(1, 4)]
    return f"i went to {' '.join(places)}." if places else ""


def wrong(world: World, found: Findings, rng: random.Random) -> str:
    """Things that the trajectory does not show, or shows to be false."""
    said = []
    if rng.random() < 0.5:
        places = [place for place in world.places if found.seen.get(world.targets[0]) != place]
        said.append(f"{world.targets[0]} is in {rng.choice(places)}.")
    if rng.random() < 0.4:
        said.append(f"nothing in {' '.join(rng.sample(world.places, rng.randint(1, 3)))}.")
    if found.visited and rng.random() < 0.5:
        said.append(f"try {' '.join(rng.sample(found.visited, min(len(found.visited), rng.randint(1, 3))))}.")
    if world.tools and rng.random() < 0.3:
        tool = rng.choice(world.tools)
        said.append(rng.choice((f"{tool} is broken.", f"use {tool}.")))
    rng.shuffle(said)
    return " ".join(said)
