"""The beginnings of searches with notes, in rooms that are made up: no engine plays them, and nothing is found.

In a play of a real game few actions depend on the notes, and the rest is search. Here nearly every action does, and
notes, places and order are new each time, so an actor learns sooner which sentences send it to a place and which keep
it away.
"""

from __future__ import annotations

import random
from dataclasses import replace

from retro.types import Step
from scripts.small_models.alfworld import reflections
from scripts.small_models.alfworld.demonstrator import Character, Demonstrator
from scripts.small_models.alfworld.language import Advice, Says
from scripts.small_models.alfworld.plays import Play, random_note
from scripts.small_models.alfworld.tokenizer import HIGHEST, THINGS
from scripts.small_models.alfworld.view import View, enumerated, kind_of, with_places

CLOSED = ("drawer", "cabinet", "fridge", "microwave", "safe")
"""Kinds of places that are closed at first, in most games."""
MOST_PLACES = 4
"""That are searched."""


def made_up_search(like: Play, character: Character, rng: random.Random) -> Play:
    """A search of up to ``MOST_PLACES`` places in the room of ``like``; half of the time its opening lists them in
    another order."""
    places = list(View.of(like.opening).places)
    if rng.random() < 0.5:
        rng.shuffle(places)
    opening = with_places(like.opening, places)
    view = View.of(opening)
    notes = tuple(tuple(_note(view, rng)) for _ in range(rng.choice((1, 1, 2, 3))))
    demonstrator = Demonstrator(opening, notes, replace(character, slips=0.0), rng)
    hidden = {view.goal.thing, view.goal.place}
    contents = [thing for thing in THINGS if thing not in hidden]
    shut = {place for place in places if kind_of(place) in CLOSED and rng.random() < 0.8}
    steps: list[Step] = []
    wanted = rng.randint(1, min(MOST_PLACES, len(places)))
    while len(demonstrator.view.searched) < wanted:
        action = demonstrator.act()
        place = " ".join(action.split()[-2:])
        answer = f"You arrive at {place}." if action.startswith("go to ") else f"You open the {place}."
        if place in shut and action.startswith("go to "):
            answer += f" The {place} is closed."
        else:
            answer += f" The {place} is open. In it" if place in shut else f" On the {place}"
            seen = [f"{kind} {rng.randint(1, HIGHEST[kind])}" for kind in rng.sample(contents, rng.randint(0, 3))]
            answer += f", you see {enumerated(seen)}."
        steps.append(Step(action, answer, 0.0))
        demonstrator.see(answer)
    return Play(opening, notes, tuple(steps), 0.0, success=False)


def _note(view: View, rng: random.Random) -> list[Advice]:
    """In most cases a single sentence that says where to look or where not to."""
    match rng.choices(("where", "tries", "empty", "any"), (0.15, 0.3, 0.3, 0.25))[0]:
        case "where":
            return [Advice(Says.WHERE, (rng.choice(view.places),), f"{view.goal.thing} {rng.randint(1, 3)}")]
        case "tries":
            return [Advice(Says.TRY, reflections.some(view.places, rng, 4))]
        case "empty":
            return [Advice(Says.EMPTY, reflections.some(view.places, rng, reflections.MOST_NAMES))]
    return random_note(view, (), rng)
