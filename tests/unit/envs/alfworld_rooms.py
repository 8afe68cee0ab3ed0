"""Rooms that tests make up, as ALFWorld games: PDDL problems for the domain and the grammar of its wheel."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LAMP = "desklamp"
CLOSED = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})
TREATMENTS = {
    "pick_clean_then_place_in_recep": ("cleanable", "isClean"),
    "pick_heat_then_place_in_recep": ("heatable", "isHot"),
    "pick_cool_then_place_in_recep": ("coolable", "isCool"),
}
ALWAYS_NAMED = ("SinkType", "SinkBasinType", "MicrowaveType", "FridgeType")
"""Types of places that the domain's actions name."""


@dataclass(frozen=True)
class Room:
    """``places`` maps names (``cabinet 1``) to the things in them; the task is about ``thing`` and ``place``, types."""

    kind: str
    task: str
    thing: str
    place: str
    places: dict[str, tuple[str, ...]]
    walkthrough: tuple[str, ...]

    @property
    def things(self) -> tuple[str, ...]:
        return tuple(thing for things in self.places.values() for thing in things)

    def problem(self) -> str:
        """The PDDL problem. The engine finds the same names for places and things."""
        ids = _ids((*self.places, *self.things))
        spots = {place: f"loc_bar_{number}" for number, place in enumerate(self.places, 1)}
        place_types = {_type(place) for place in self.places}
        thing_types = {_type(thing) for thing in self.things}
        objects = [
            "agent1 - agent",
            *(f"{spot} - location" for spot in ("loc_bar_0", *spots.values())),
            *(f"{ids[place]} - receptacle" for place in self.places),
            *(f"{ids[thing]} - object" for thing in self.things),
            *(f"{name} - rtype" for name in sorted({*place_types, *ALWAYS_NAMED})),
            *(f"{name} - otype" for name in sorted({*thing_types, "KnifeType", "ButterKnifeType"})),
        ]
        facts = ["(= (total-cost) 0)", "(atLocation agent1 loc_bar_0)"]
        facts += [f"(canContain {place} {thing})" for place in sorted(place_types) for thing in sorted(thing_types)]
        for place, things in self.places.items():
            facts += [f"(receptacleAtLocation {ids[place]} {spots[place]})"]
            facts += [f"(receptacleType {ids[place]} {_type(place)})"]
            facts += [f"(openable {ids[place]})"] if _kind(place) in CLOSED else []
            for thing in things:
                facts += [
                    f"(objectAtLocation {ids[thing]} {spots[place]})",
                    f"(inReceptacle {ids[thing]} {ids[place]})",
                ]
                facts += [f"(objectType {ids[thing]} {_type(thing)})"]
                can = ("toggleable",) if _kind(thing) == LAMP else ("pickupable", "cleanable", "heatable", "coolable")
                facts += [f"({able} {ids[thing]})" for able in can]
        lines = "\n    ".join
        return (
            f"(define (problem made_up)\n(:domain alfred)\n(:objects\n    {lines(objects)}\n)\n"
            f"(:init\n    {lines(facts)}\n)\n(:goal {self._goal()})\n(:metric minimize (total-cost))\n)\n"
        )

    def _goal(self) -> str:
        thing, place = _type(self.thing), _type(self.place)
        if self.kind == "look_at_obj_in_light":
            lamp = f"(objectType ?ot {_type(LAMP)}) (toggleable ?ot) (isToggled ?ot)"
            there = "(receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)"
            return (
                f"(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and {lamp} {there}))"
                f" (exists (?o - object ?a - agent) (and (objectType ?o {thing}) (holds ?a ?o))))"
            )
        put = f"(objectType ?o {thing}) (receptacleType ?r {place}) (inReceptacle ?o ?r)"
        if self.kind == "pick_two_obj_and_place":
            second = f"(not (= ?o ?p)) (objectType ?p {thing}) (receptacleType ?r {place}) (inReceptacle ?p ?r)"
            put = f"{put} (exists (?p - object) (and {second}))"
        elif self.kind in TREATMENTS:
            put = " ".join(f"({word} ?o)" for word in TREATMENTS[self.kind]) + f" {put}"
        return f"(exists (?r - receptacle) (exists (?o - object) (and {put})))"

    def data(self) -> dict[str, Any]:
        """The content of its ``game.tw-pddl``; skips the test where ALFWorld is not installed."""
        domain, grammar = logic()
        return {
            "pddl_domain": domain,
            "grammar": grammar.replace("UNKNOWN GOAL.", self.task),
            "pddl_problem": self.problem(),
            "walkthrough": list(self.walkthrough),
            "solvable": True,
        }

    def write(self, folder: Path, **replaced: Any) -> None:
        """Write ``game.tw-pddl`` and ``traj_data.json`` as the official release has them."""
        folder.mkdir(parents=True)
        (folder / "game.tw-pddl").write_text(json.dumps({**self.data(), **replaced}), encoding="utf-8")
        (folder / "traj_data.json").write_text(json.dumps({"task_type": self.kind}), encoding="utf-8")


def logic() -> tuple[str, str]:
    """The domain and the grammar of ALFWorld's wheel."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or spec.origin is None or importlib.util.find_spec("textworld") is None:
        pytest.skip("alfworld is not installed: pip install 'retro[alfworld]'")
    folder = Path(spec.origin).parent / "data"
    return tuple((folder / name).read_text(encoding="utf-8") for name in ("alfred.pddl", "alfred.twl2"))  # type: ignore[return-value]


def _kind(name: str) -> str:
    return name.rpartition(" ")[0] or name


def _type(name: str) -> str:
    return {"sinkbasin": "SinkBasin"}.get(_kind(name), _kind(name).capitalize()) + "Type"


def _ids(names: tuple[str, ...]) -> dict[str, str]:
    """ALFWorld numbers the things of a kind backwards, in the order of their ids."""
    counts = Counter(map(_kind, names))
    ids = {}
    for name in names:
        kind, _, number = name.rpartition(" ")
        place = f"{counts[kind] - int(number):02d}"
        ids[name] = f"Sink_bar_{place}_bar_SinkBasin" if kind == "sinkbasin" else f"{kind.capitalize()}_bar_{place}"
    return ids


def _plan(actions: str) -> tuple[str, ...]:
    return tuple(actions.split("; "))


KITCHEN = {
    "countertop 1": ("knife 1", "potato 1"),
    "diningtable 1": ("mug 1",),
    "fridge 1": ("apple 1", "potato 2"),
    "microwave 1": (),
    "sinkbasin 1": ("mug 2",),
    "cabinet 1": (),
    "cabinet 2": ("plate 1",),
}
STUDY = {
    "bed 1": ("pillow 1",),
    "desk 1": ("desklamp 1", "pen 1"),
    "drawer 1": ("book 1",),
    "shelf 1": ("vase 1",),
}

PUT_PLATE = Room(
    "pick_and_place_simple",
    "put a plate in diningtable.",
    "plate",
    "diningtable",
    KITCHEN,
    _plan(
        "go to cabinet 2; open cabinet 2; take plate 1 from cabinet 2; go to diningtable 1; "
        "move plate 1 to diningtable 1"
    ),
)
HEAT_POTATO = Room(
    "pick_heat_then_place_in_recep",
    "heat some potato and put it in diningtable.",
    "potato",
    "diningtable",
    KITCHEN,
    _plan(
        "go to countertop 1; take potato 1 from countertop 1; go to microwave 1; "
        "heat potato 1 with microwave 1; go to diningtable 1; move potato 1 to diningtable 1"
    ),
)
COOL_MUG = Room(
    "pick_cool_then_place_in_recep",
    "put a cool mug in cabinet.",
    "mug",
    "cabinet",
    KITCHEN,
    _plan(
        "go to diningtable 1; take mug 1 from diningtable 1; go to fridge 1; cool mug 1 with fridge 1; "
        "go to cabinet 1; open cabinet 1; move mug 1 to cabinet 1"
    ),
)
CLEAN_MUG = Room(
    "pick_clean_then_place_in_recep",
    "put a clean mug in countertop.",
    "mug",
    "countertop",
    KITCHEN,
    _plan(
        "go to sinkbasin 1; take mug 2 from sinkbasin 1; clean mug 2 with sinkbasin 1; "
        "go to countertop 1; move mug 2 to countertop 1"
    ),
)
TWO_MUGS = Room(
    "pick_two_obj_and_place",
    "put two mug in countertop.",
    "mug",
    "countertop",
    KITCHEN,
    _plan(
        "go to diningtable 1; take mug 1 from diningtable 1; go to countertop 1; "
        "move mug 1 to countertop 1; go to sinkbasin 1; take mug 2 from sinkbasin 1; go to countertop 1; "
        "move mug 2 to countertop 1"
    ),
)
READ_BOOK = Room(
    "look_at_obj_in_light",
    "look at book under the desklamp.",
    "book",
    "desk",
    STUDY,
    _plan("go to drawer 1; open drawer 1; take book 1 from drawer 1; go to desk 1; use desklamp 1"),
)
ROOMS = (PUT_PLATE, HEAT_POTATO, COOL_MUG, CLEAN_MUG, TWO_MUGS, READ_BOOK)
"""One of each kind."""
