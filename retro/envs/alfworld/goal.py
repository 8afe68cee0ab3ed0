"""Milestones on the way to a goal, as queries of the engine's facts.

ALFWorld itself has only success. With ``graded: true``, each milestone that a play reaches for the first time earns an
equal part of the return, and success earns the rest. A milestone that holds from the start earns nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict

HELD = "holds(a:agent, o:object) & objecttype(o:object, t:otype)"
PLACED = "objecttype(o:object, t:otype) & inreceptacle(o:object, r:receptacle) & receptacletype(r:receptacle, k:rtype)"
SECOND_HELD = PLACED + " & holds(a:agent, p:object) & objecttype(p:object, t:otype)"
LIT = "istoggled(l:object) & objecttype(l:object, d:otype)"
_TREATED = "{fact}(o:object) & objecttype(o:object, t:otype)"

MILESTONES: Mapping[str, tuple[str, ...]] = {
    "pick_and_place_simple": (HELD,),
    "look_at_obj_in_light": (HELD, LIT),
    "pick_clean_then_place_in_recep": (HELD, _TREATED.format(fact="isclean")),
    "pick_heat_then_place_in_recep": (HELD, _TREATED.format(fact="ishot")),
    "pick_cool_then_place_in_recep": (HELD, _TREATED.format(fact="iscool")),
    "pick_two_obj_and_place": (HELD, PLACED, SECOND_HELD),
}
"""The queries of each of ALFWorld's six kinds of tasks, in TextWorld's language. ``t`` is the wanted type of object,
``k`` the type of place, ``d`` the type of lamp."""

_OBJECT = re.compile(r"\(\s*objectType\s+\?\w+\s+(\w+)\s*\)", re.IGNORECASE)
_PLACE = re.compile(r"\(\s*receptacleType\s+\?\w+\s+(\w+)\s*\)", re.IGNORECASE)


class Milestone(TypedDict):
    """A query of the facts: is there an assignment that makes ``query`` true?"""

    query: str
    bound: dict[str, tuple[str, str]]
    """Placeholders with a fixed value: name → (type, value)."""


def milestones(kind: str, problem: str) -> list[Milestone]:
    """The milestones of a ``kind`` of game, for the objects and places in the goal of its PDDL ``problem``.

    Raises:
        ValueError: for an unknown kind, or a goal that is not of that kind.
    """
    if kind not in MILESTONES:
        raise ValueError(f"no milestones for tasks of kind {kind!r}; there are: {', '.join(MILESTONES)}")
    goal = problem[max(problem.lower().rfind("(:goal"), 0) :]
    objects, places = _OBJECT.findall(goal), _PLACE.findall(goal)
    lamps = [name for name in objects if "lamp" in name.lower()]
    wanted = [name for name in objects if name not in lamps]
    found: dict[str, tuple[str, list[str]]] = {"t": ("otype", wanted), "k": ("rtype", places), "d": ("otype", lamps)}
    bound: dict[str, tuple[str, str]] = {}
    for placeholder, (type_name, names) in found.items():
        if any(f"{placeholder}:{type_name}" in query for query in MILESTONES[kind]):
            if not names:
                raise ValueError(f"the goal of this game is not one of kind {kind}")
            bound[placeholder] = (type_name, names[0].lower())
    return [
        {"query": query, "bound": {name: pair for name, pair in bound.items() if f"{name}:{pair[0]}" in query}}
        for query in MILESTONES[kind]
    ]


def met(state: Any, asked: list[Milestone]) -> list[bool]:
    """Which milestones hold in ``state`` (a ``textworld.logic.State``; worker processes only)."""
    from textworld.logic import Placeholder, Variable

    from retro.envs.alfworld.text import Context

    answers = []
    for milestone in asked:
        bound = {Placeholder(name, kind): Variable(thing, kind) for name, (kind, thing) in milestone["bound"].items()}
        answers.append(Context(state, {}, bound).holds(milestone["query"]))
    return answers
