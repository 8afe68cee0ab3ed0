"""What a player of an ALFWorld game knows: read from the texts of the play, and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_NAME = r"[a-z]+ \d+"
_IN_OPENING = re.compile(r"you see a (.*?)\.$", re.MULTILINE)
_SEEN = re.compile(r"(?:[Oo]n the|[Ii]n it|Looking quickly around you)[^.]*?, you see (.*?)\.")
_GOALS = (
    (re.compile(r"(?:look at|examine the) (?P<thing>\w+) (?:under|with) the (?P<place>\w+)"), "look"),
    (re.compile(r"(?:put|find) two (?P<thing>\w+)(?: and put them)? (?:in|on) (?P<place>\w+)"), "two"),
    (re.compile(r"(?P<verb>clean|heat|cool) some (?P<thing>\w+) and put it (?:in|on) (?P<place>\w+)"), "treat"),
    (re.compile(r"put a (?P<verb>clean|hot|cool) (?P<thing>\w+) (?:in|on) (?P<place>\w+)"), "treat"),
    (re.compile(r"put (?:a|some) (?P<thing>\w+) (?:in|on) (?P<place>\w+)"), "put"),
)
_VERBS = {"hot": "heat"}


@dataclass(frozen=True)
class Goal:
    """What a game asks for."""

    kind: str
    """``put``, ``treat``, ``two`` or ``look``."""
    thing: str
    """The kind of thing: ``mug``."""
    place: str
    """The kind of place that it belongs to; for ``look`` the kind of lamp."""
    verb: str = ""
    """``clean``, ``heat`` or ``cool``."""

    @property
    def count(self) -> int:
        return 2 if self.kind == "two" else 1

    @classmethod
    def of(cls, opening: str) -> Goal:
        """The goal that the last line of an opening states.

        Raises:
            ValueError: for a goal in other words than ALFWorld's.
        """
        task = opening.rpartition("Your task is to: ")[2]
        for pattern, kind in _GOALS:
            found = pattern.match(task)
            if found:
                words = found.groupdict()
                verb = words.get("verb", "")
                return cls(kind, words["thing"], words["place"], _VERBS.get(verb, verb))
        raise ValueError(f"no goal of ALFWorld's: {task!r}")


def with_places(opening: str, places: Sequence[str]) -> str:
    """The opening of a room that has these places and no others."""
    return _IN_OPENING.sub(f"you see {enumerated(places)}.", opening, count=1)


def enumerated(names: Sequence[str]) -> str:
    """Names as ALFWorld lists what one sees: ``a mug 1, and a plate 2``."""
    if not names:
        return "nothing"
    *others, last = [f"a {name}" for name in names]
    return f"{', '.join(others)}, and {last}" if others else last


def names(text: str) -> list[str]:
    """The numbered things and places that a text names, in order."""
    return re.findall(_NAME, text)


def kind_of(name: str) -> str:
    return name.rpartition(" ")[0]


@dataclass
class View:
    """What is known so far; :meth:`see` takes each observation."""

    places: tuple[str, ...]
    goal: Goal
    at: str = ""
    shut: bool = False
    """Whether the place where the player is is closed."""
    where: dict[str, str] = field(default_factory=dict)
    """Where things were last seen."""
    searched: list[str] = field(default_factory=list)
    """Places whose contents were seen, in order."""
    holding: str = ""
    put: dict[str, str] = field(default_factory=dict)
    """What was put down, and where."""
    treated: set[tuple[str, str]] = field(default_factory=set)
    """Verb and thing."""
    closed: set[str] = field(default_factory=set)
    """Places that were closed when they were first seen."""

    @classmethod
    def of(cls, opening: str) -> View:
        seen = _IN_OPENING.search(opening)
        if seen is None:
            raise ValueError(f"no opening of ALFWorld's: {opening[:200]!r}")
        return cls(tuple(names(seen[1])), Goal.of(opening))

    def see(self, action: str, observation: str) -> None:
        """What came of an action."""
        if observation.startswith("Nothing happens"):
            return
        words = action.split()
        if action.startswith(("go to ", "examine ")) and " ".join(words[-2:]) in self.places:
            self.at = " ".join(words[-2:])
        if action.startswith(("go to ", "open ", "examine ")) and self.at:
            self.shut = observation.endswith("is closed.")
            if self.shut:
                self.closed.add(self.at)
            listed = _SEEN.search(observation)
            if listed and not self.shut:
                self._look(names(listed[1]))
        elif words[0] == "close":
            self.shut = True
        elif words[0] == "take":
            self.holding = " ".join(words[1:3])
            self.where.pop(self.holding, None)
            self.put.pop(self.holding, None)
        elif words[0] == "move":
            thing, place = " ".join(words[1:3]), " ".join(words[4:6])
            self.holding = ""
            self.put[thing] = self.where[thing] = place
        elif words[0] in ("clean", "heat", "cool"):
            self.treated.add((words[0], " ".join(words[1:3])))

    def _look(self, things: list[str]) -> None:
        if self.at not in self.searched:
            self.searched.append(self.at)
        for thing in [thing for thing, place in self.where.items() if place == self.at]:
            del self.where[thing]
        self.where.update((thing, self.at) for thing in things)

    def of_kind(self, kind: str) -> list[str]:
        """The places of a kind, in the order of their numbers."""
        return sorted((place for place in self.places if kind_of(place) == kind), key=lambda name: int(name.split()[1]))

    def wanted(self, kind: str) -> list[str]:
        """Things of a kind that are seen somewhere and were not put down on purpose."""
        return [thing for thing in self.where if kind_of(thing) == kind and thing not in self.put]
