"""Reflections of mixed worth about failed plays of ALFWorld: what the retrospective base model is trained on.

``useful`` ones say something true that the play has shown, and what to try; the others are vague, tell what was done,
or are wrong. The base model is not told which of them help, nor where things usually lie.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from retro.types import Step
from scripts.small_models.alfworld.demonstrator import Told
from scripts.small_models.alfworld.language import TOOLS, Advice, Says
from scripts.small_models.alfworld.view import View, kind_of

MIXTURE = {"useful": 0.40, "vague": 0.18, "story": 0.17, "wrong": 0.25}
MOST_NAMES = 8
"""In one sentence."""


@dataclass(frozen=True)
class Findings:
    """What a failed play shows, together with the notes that its actor had."""

    view: View
    seen: dict[str, str]
    """Where the things that matter are."""
    empty: list[str]
    """Places in which nothing that matters was seen, in order."""
    fresh: list[str]
    """Places that neither the play nor the notes rule out."""
    forgotten: str
    """The treatment that was left out, if one was."""
    together: str
    """Where both things should be, if they were put into two places."""


def find(opening: str, steps: Sequence[Step], notes: Sequence[Sequence[Advice]]) -> Findings:
    view = View.of(opening)
    first_seen: dict[str, str] = {}
    matters = {view.goal.thing, view.goal.place} if view.goal.kind == "look" else {view.goal.thing}
    for step in steps:
        view.see(step.action, step.observation)
        for thing, place in view.where.items():
            if kind_of(thing) in matters:
                first_seen.setdefault(thing, place)
    told = Told.by(notes)
    empty = [place for place in view.searched if place not in first_seen.values()]
    ruled_out = {*view.searched, *told.empty}
    fresh = [place for place in view.places if place not in ruled_out]
    verb = view.goal.verb
    touched = bool(view.holding or view.put)
    forgotten = verb if touched and not any(one == verb for one, _ in view.treated) else ""
    together = ""
    if view.goal.kind == "two" and len(set(view.put.values())) > 1:
        together = next(iter(view.put.values()))
    return Findings(view, first_seen, empty, fresh, forgotten, together)


def write(found: Findings, rng: random.Random) -> list[Advice]:
    """One reflection, of a worth drawn from ``MIXTURE``."""
    worth = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
    said = {"useful": useful, "vague": vague, "story": story, "wrong": wrong}[worth](found, rng)
    return said or vague(found, rng)


def useful(found: Findings, rng: random.Random, each: float = 0.5) -> list[Advice]:
    """Some of the true things that can be said, each with probability ``each``; a plan instead where all is known."""
    if found.seen and rng.random() < each / 4:
        plan = remaining_plan(found)
        if plan:
            return [Advice(Says.PLAN, plan)]
    said = []
    for thing, place in list(found.seen.items())[: found.view.goal.count + (found.view.goal.kind == "look")]:
        if rng.random() < each:
            said.append(Advice(Says.WHERE, (place,), thing))
    if found.forgotten and rng.random() < each:
        said.append(Advice(Says.TREAT, (found.forgotten,)))
    if found.together and rng.random() < each:
        said.append(Advice(Says.TOGETHER, (found.together,)))
    if len(found.seen) < found.view.goal.count:
        if found.empty and rng.random() < each:
            said.append(Advice(Says.EMPTY, tuple(found.empty[-MOST_NAMES:])))
        if found.fresh and rng.random() < each:
            said.append(Advice(Says.TRY, some(found.fresh, rng, 5)))
    return said


def vague(found: Findings, rng: random.Random) -> list[Advice]:
    return [Advice(Says.VAGUE)] * rng.randint(1, 2)


def story(found: Findings, rng: random.Random) -> list[Advice]:
    places = found.view.searched[: rng.randint(1, 5)]
    return [Advice(Says.STORY, tuple(places))] if places else []


def wrong(found: Findings, rng: random.Random) -> list[Advice]:
    """Things that the play does not show, or shows to be false."""
    view, said = found.view, []
    if rng.random() < 0.5:
        thing = next(iter(found.seen), f"{view.goal.thing} 1")
        places = [place for place in view.places if place != found.seen.get(thing)]
        said.append(Advice(Says.WHERE, (rng.choice(places),), thing))
    if rng.random() < 0.4:
        said.append(Advice(Says.EMPTY, some(found.fresh or view.places, rng, 4)))
    if view.searched and rng.random() < 0.5:
        said.append(Advice(Says.TRY, some(found.empty or view.searched, rng, 4)))
    if rng.random() < 0.2:
        said.append(Advice(Says.TREAT, (rng.choice([verb for verb in TOOLS if verb != view.goal.verb]),)))
    rng.shuffle(said)
    return said


def remaining_plan(found: Findings) -> tuple[str, ...]:
    """The actions that solve the task, if the play has shown where everything is; else nothing."""
    view = found.view
    goal = view.goal
    things = [thing for thing in found.seen if kind_of(thing) == goal.thing]
    if len(things) < goal.count:
        return ()
    if goal.kind == "look":
        lamps = [thing for thing in found.seen if kind_of(thing) == goal.place]
        if not lamps:
            return ()
        return (*_take(found, things[0]), *_reach(found, found.seen[lamps[0]]), f"use {lamps[0]}")
    target = next(iter(view.put.values()), view.of_kind(goal.place)[0])
    plan: list[str] = []
    for thing in things[: goal.count]:
        plan += _take(found, thing)
        if goal.verb:
            tools = view.of_kind(TOOLS[goal.verb])
            plan += [f"go to {tools[0]}", f"{goal.verb} {thing} with {tools[0]}"] if tools else []
        opens = target in found.view.closed and f"open {target}" not in plan
        plan += [f"go to {target}", *([f"open {target}"] if opens else []), f"move {thing} to {target}"]
    return tuple(plan)


def some(names: Sequence[str], rng: random.Random, most: int) -> tuple[str, ...]:
    return tuple(rng.sample(list(names), rng.randint(1, min(most, len(names)))))


def _take(found: Findings, thing: str) -> list[str]:
    place = found.seen[thing]
    return [*_reach(found, place), f"take {thing} from {place}"]


def _reach(found: Findings, place: str) -> list[str]:
    return [f"go to {place}", *([f"open {place}"] if place in found.view.closed else [])]
