"""Short games with notes in rooms that are made up: no engine plays them.

In a play of a real game few actions depend on the notes, and where many things lie the wanted one is mostly among
them. Here nearly every action depends on a note or on whether the wanted thing is in a list, and notes, places, lists
and order are new each time. So an actor learns sooner which sentences send it to a place and which keep it away, and
to take what it sees instead of what it expects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
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
"""That are searched before a game in which nothing is found ends."""
MOST_STEPS = 14
KINDS_IN_A_PLACE = (0, 0, 0, 1, 1, 2, 3, 4, 6, 8)
"""Kinds of things that lie in a place; each number is as frequent as the others."""
FINDS = 0.6
"""How often there is a wanted thing to be found at all."""
IS_HERE = 0.4
"""How often a wanted thing lies in a place, until all that are wanted were found; never where it belongs."""


class MadeUpRoom:
    """Answers the demonstrator's actions in ALFWorld's words. What lies in a place is drawn when it is first seen."""

    def __init__(self, view: View, notes: Sequence[Sequence[Advice]], rng: random.Random) -> None:
        self._rng = rng
        self._shut = {place for place in view.places if kind_of(place) in CLOSED and rng.random() < 0.8}
        self._opens = frozenset(self._shut)
        self._lies: dict[str, list[str]] = {}
        self._at = ""
        self._target = view.goal.place
        kinds = [view.goal.thing] * view.goal.count + [view.goal.place] * (view.goal.kind == "look")
        self._hidden = kinds if rng.random() < FINDS else []
        self._others = [kind for kind in THINGS if kind not in (view.goal.thing, view.goal.place)]
        self._shown: set[str] = set()
        advices = [advice for note in notes for advice in reversed(note) if advice.says is Says.WHERE]
        self._named = {kind_of(advice.thing): advice.thing for advice in advices}  # the newest note's

    def answer(self, action: str) -> str:
        """
        Raises:
            ValueError: for an action that the demonstrator, when nothing slips, does not take.
        """
        match action.split():
            case ["go", "to", *name]:
                self._at = " ".join(name)
                if self._at in self._shut:
                    return f"You arrive at {self._at}. The {self._at} is closed."
                return f"You arrive at {self._at}. {self._seen()}"
            case ["open", *name]:
                self._shut.remove(self._at)
                return f"You open the {' '.join(name)}. {self._seen()}"
            case ["take", kind, number, "from", *name]:
                self._lies[self._at].remove(f"{kind} {number}")
                return f"You pick up the {kind} {number} from the {' '.join(name)}."
            case ["move", kind, number, "to", *name]:
                self._lies[self._at].append(f"{kind} {number}")
                return f"You move the {kind} {number} to the {' '.join(name)}."
            case ["clean" | "heat" | "cool" as verb, kind, number, "with", *name]:
                return f"You {verb} the {kind} {number} using the {' '.join(name)}."
            case ["use", *name]:
                return f"You turn on the {' '.join(name)}."
        raise ValueError(f"the demonstrator does not do this: {action!r}")

    def _seen(self) -> str:
        if self._at not in self._lies:
            self._lies[self._at] = self._drawn()
        opened = f"The {self._at} is open. In it" if self._at in self._opens else f"On the {self._at}"
        return f"{opened}, you see {enumerated(self._lies[self._at])}."

    def _drawn(self) -> list[str]:
        """Things of one kind stand together, the highest number first, as in ALFWorld."""
        rng = self._rng
        drawn = {kind: rng.choice((1, 1, 1, 2, 3)) for kind in rng.sample(self._others, rng.choice(KINDS_IN_A_PLACE))}
        groups = [rng.sample(range(1, HIGHEST[kind] + 1), count) for kind, count in drawn.items()]
        names = [
            [f"{kind} {one}" for one in sorted(group, reverse=True)] for kind, group in zip(drawn, groups, strict=True)
        ]
        for kind in dict.fromkeys(self._hidden):
            if kind_of(self._at) != self._target and rng.random() < IS_HERE:
                names.insert(rng.randint(0, len(names)), self._wanted(kind))
        return [name for group in names for name in group]

    def _wanted(self, kind: str) -> list[str]:
        """One or two of a kind that were not seen before; often the one that a note names."""
        rng = self._rng
        every = [f"{kind} {number}" for number in range(HIGHEST[kind], 0, -1)]
        free = [name for name in every if name not in self._shown]
        kept = sorted(rng.sample(range(len(free)), rng.choice((1, 1, 1, 2))))
        named = self._named.get(kind)
        here = [named] if named in free and rng.random() < 0.5 else [free[index] for index in kept]
        self._shown.update(here)
        for _ in here[: self._hidden.count(kind)]:
            self._hidden.remove(kind)
        return here


def made_up_game(like: Play, character: Character, rng: random.Random) -> Play:
    """A game in the room of ``like``, until ``MOST_PLACES`` places were seen in vain or all that is wanted was done;
    half of the time its opening lists the places in another order."""
    places = list(View.of(like.opening).places)
    if rng.random() < 0.5:
        rng.shuffle(places)
    opening = with_places(like.opening, places)
    view = View.of(opening)
    notes = tuple(tuple(_note(view, rng)) for _ in range(rng.choice((1, 1, 2, 3))))
    demonstrator = Demonstrator(opening, notes, replace(character, slips=0.0), rng)
    room = MadeUpRoom(view, notes, rng)
    steps: list[Step] = []
    places_in_vain = rng.randint(1, min(MOST_PLACES, len(places)))
    while len(steps) < MOST_STEPS:
        seen = demonstrator.view
        if len(seen.searched) >= places_in_vain and not seen.holding and not seen.wanted(seen.goal.thing):
            break
        action = demonstrator.act()
        if action == "look":  # there is nothing left to do
            break
        answer = room.answer(action)
        steps.append(Step(action, answer, 0.0))
        demonstrator.see(answer)
        if action.startswith("use "):
            break
    return Play(opening, notes, tuple(steps), 0.0, success=False)


def _note(view: View, rng: random.Random) -> list[Advice]:
    """In most cases a single sentence that says where to look, where not to, or what not to forget."""
    kinds = {"where": 0.15, "tries": 0.3, "empty": 0.3, "any": 0.25} | ({"treat": 0.25} if view.goal.verb else {})
    match rng.choices(list(kinds), list(kinds.values()))[0]:
        case "where":
            return [Advice(Says.WHERE, (rng.choice(view.places),), f"{view.goal.thing} {rng.randint(1, 3)}")]
        case "tries":
            return [Advice(Says.TRY, reflections.some(view.places, rng, 4))]
        case "empty":
            return [Advice(Says.EMPTY, reflections.some(view.places, rng, reflections.MOST_NAMES))]
        case "treat":
            return [Advice(Says.TREAT, (view.goal.verb,))]
    return random_note(view, (), rng)
