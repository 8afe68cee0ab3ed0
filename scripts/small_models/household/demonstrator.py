"""The stochastic demonstrator that the quickstart's actor is cloned from.

It obeys the notes in its prompt, right or wrong, and the newest first where they differ; without notes it searches by a
weak prior, likes the first of two tools, and often forgets what the room does not ask for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from retro.envs.household import CLOSED, LAMP, TOOLS, World, kind_of

PRIOR = {
    "countertop": 4.0,
    "sidetable": 3.0,
    "desk": 2.5,
    "shelf": 1.6,
    "dresser": 1.2,
    "cabinet": 0.8,
    "drawer": 0.5,
    "garbagecan": 0.3,
}
"""Where the demonstrator likes to look; it knows nothing of where things usually lie."""
FIRST_TOOL = 0.75
"""How often it tries the first tool of two, knowing nothing."""
FORGETS = {"clean": 0.3, "heat": 0.35, "cool": 0.75}
"""How often it leaves the treatment out, unless a note reminds it."""

_NAME = r"[a-z]+ \d+"
_NAMES = rf"{_NAME}(?: {_NAME})*"
_IS_IN = re.compile(rf"({_NAME}) is in ({_NAME})\.")
_NOTHING_IN = re.compile(rf"nothing in ({_NAMES})\.")
_TRY = re.compile(rf"try ({_NAMES})\.")
_BROKEN = re.compile(rf"({_NAME}) is broken\.")
_USE = re.compile(rf"use ({_NAME})\.")
_REMEMBER = re.compile(r"remember to (clean|heat|cool) it\.")


def names(text: str) -> list[str]:
    return re.findall(_NAME, text)


@dataclass
class Advice:
    """What the notes say, the newest first."""

    places: dict[str, str] = field(default_factory=dict)
    nothing_in: set[str] = field(default_factory=set)
    try_places: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    use: str = ""
    remember: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, notes: Sequence[str]) -> Advice:
        advice = cls()
        for note in reversed(notes):
            for thing, place in _IS_IN.findall(note):
                advice.places.setdefault(thing, place)
            for listed in _NOTHING_IN.findall(note):
                advice.nothing_in.update(names(listed))
            for listed in _TRY.findall(note):
                advice.try_places.extend(name for name in names(listed) if name not in advice.try_places)
            advice.broken.update(_BROKEN.findall(note))
            used = _USE.findall(note)
            if used and not advice.use:
                advice.use = used[0]
            advice.remember.update(_REMEMBER.findall(note))
        return advice


class Demonstrator:
    """Plays one episode: ``act()`` gives the next action, ``see(observation)`` takes the answer to it."""

    def __init__(self, world: World, notes: Sequence[str], rng: random.Random) -> None:
        self._world = world
        self._advice = Advice.of(notes)
        self._rng = rng
        self._at = ""
        self._shut = False
        self._seen: dict[str, str] = {}
        self._visited: set[str] = set()
        self._broken: set[str] = set()
        self._holding = ""
        self._treated: set[str] = set()
        self._put: list[str] = []
        self._lit = False
        self._action = ""
        kind = world.kind
        self._treats = kind in TOOLS and (kind in self._advice.remember or rng.random() >= FORGETS[kind])

    def act(self) -> str:
        self._action = self._next()
        return self._action

    def see(self, observation: str) -> None:
        verb, _, rest = self._action.partition(" ")
        if verb == "go":
            self._at = rest.removeprefix("to ")
            self._shut = observation == "it is closed"
        if observation.startswith("you see"):
            self._shut = False
            self._visited.add(self._at)
            for thing in names(observation.removeprefix("you see")):
                self._seen[thing] = self._at
        elif observation == "it is broken":
            self._broken.add(self._at)
        elif observation.startswith("you take"):
            self._holding = self._action.removeprefix("take ").partition(" from ")[0]
            self._seen.pop(self._holding, None)
        elif verb in TOOLS and observation.startswith("you "):
            self._treated.add(self._holding)
        elif observation.startswith("you put"):
            self._put.append(self._holding)
            self._holding = ""

    def _next(self) -> str:
        world = self._world
        if self._shut:
            return f"open {self._at}"
        if self._holding:
            return self._bring()
        wanted = [target for target in world.targets if target not in self._put]
        if not wanted:
            return "look"
        return self._fetch(wanted)

    def _fetch(self, wanted: Sequence[str]) -> str:
        for target in wanted:
            if self._seen.get(target) == self._at:
                return f"take {target} from {self._at}"
        for target in wanted:
            if target in self._seen:
                return f"go to {self._seen[target]}"
        return self._search(wanted)

    def _bring(self) -> str:
        world = self._world
        if world.kind == "look":
            if LAMP not in self._seen:
                return self._search([LAMP])
            return f"use {LAMP}" if self._seen[LAMP] == self._at else f"go to {self._seen[LAMP]}"
        if self._treats and self._holding not in self._treated:
            tool = self._tool()
            if tool:
                return f"{world.kind} {self._holding} with {tool}" if tool == self._at else f"go to {tool}"
        if self._at == world.goal:
            return f"put {self._holding} in {world.goal}"
        return f"go to {world.goal}"

    def _tool(self) -> str:
        advice = self._advice
        working = [tool for tool in self._world.tools if tool not in self._broken]
        if self._at in working:
            return self._at
        if advice.use in working:
            return advice.use
        told = [tool for tool in working if tool not in advice.broken] or working
        if len(told) == 2:
            return told[0] if self._rng.random() < FIRST_TOOL else told[1]
        return told[0] if told else ""

    def _search(self, wanted: Sequence[str]) -> str:
        advice = self._advice
        left = [place for place in self._world.places if place not in self._visited]
        for thing in wanted:
            if advice.places.get(thing) in left:
                return f"go to {advice.places[thing]}"
        for place in advice.try_places:
            if place in left:
                return f"go to {place}"
        candidates = [place for place in left if place not in advice.nothing_in] or left
        if not candidates:
            return "look"
        weights = [PRIOR[kind_of(place)] for place in candidates]
        return f"go to {self._rng.choices(candidates, weights)[0]}"


__all__ = ["CLOSED", "Advice", "Demonstrator", "names"]
