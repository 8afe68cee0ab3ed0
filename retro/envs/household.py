"""A text household in ALFWorld's words: find a thing, treat it, put it where it belongs, before the steps run out.

Pure Python, seeded, without dependencies; the default of the quickstart. A task is made from its id alone
(``train-12``: the 12th task of the train split; splits are disjoint ranges of seeds).

A failure can be diagnosed, and a reflection can help, because an actor can learn:

- *where an object is, or is not*: objects are usually in certain places (``USUAL_PLACES``), which the actor does not
  know; the horizon is the shortest plan plus ``slack`` steps, so uninformed search usually runs out of steps;
- *which tool is broken*: one of a room's two basins, microwaves or fridges may be;
- *what was forgotten*: an object that is put down untreated does not count, and the room does not say so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from retro.config import NonNegativeInt
from retro.envs.base import Environment, StepResult, TaskSet, UnknownTaskError
from retro.envs.options import checked
from retro.types import Split, Task

KINDS = ("pick", "look", "clean", "heat", "cool", "pick two")
TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
LAMP = "desklamp 1"
PLACES = {
    "cabinet": 4,
    "countertop": 2,
    "desk": 2,
    "drawer": 4,
    "dresser": 2,
    "garbagecan": 1,
    "shelf": 3,
    "sidetable": 2,
}
"""The kinds of places, and the largest number of each in a room."""
CLOSED = ("cabinet", "drawer")
"""Kinds of places that must be opened before their contents are seen or reached."""
OBJECTS = ("apple", "book", "bowl", "cup", "egg", "fork", "knife", "mug", "pen", "plate")
USUAL_PLACES = {
    "apple": ("garbagecan", "sidetable"),
    "book": ("desk", "drawer"),
    "bowl": ("cabinet", "dresser"),
    "cup": ("cabinet", "shelf"),
    "desklamp": ("desk", "sidetable"),
    "egg": ("garbagecan", "cabinet"),
    "fork": ("drawer", "countertop"),
    "knife": ("drawer", "sidetable"),
    "mug": ("shelf", "desk"),
    "pen": ("dresser", "drawer"),
    "plate": ("cabinet", "shelf"),
}
"""Where each kind of object usually is: ``USUAL_WEIGHT`` times as likely as in any other place of the room."""
USUAL_WEIGHT = 8.0

_SPLIT_SEEDS = {Split.TRAIN: 1_000_000, Split.VALIDATION: 2_000_000, Split.TEST: 3_000_000}
_SPLIT_SIZE = 1_000_000


def kind_of(name: str) -> str:
    """``cabinet 2`` → ``cabinet``."""
    return name.rpartition(" ")[0]


@dataclass(frozen=True, slots=True)
class World:
    """One task's room, drawn from a seed."""

    kind: str
    targets: tuple[str, ...]
    """The one or two objects to bring."""
    goal: str
    """The place to bring them to (empty for ``look``)."""
    places: tuple[str, ...]
    """Where objects can be, in alphabetical order."""
    tools: tuple[str, ...]
    broken: str
    """The tool that does not work; empty if all work."""
    contents: Mapping[str, tuple[str, ...]]
    horizon: int

    def place_of(self, thing: str) -> str:
        return next(place for place, things in self.contents.items() if thing in things)


def draw_world(seed: int, places: int = 11, slack: int = 2, kind: str | None = None) -> World:
    """Draw a room with ``places`` places, and a task of ``kind`` (by default also drawn)."""
    rng = random.Random(seed)
    drawn = rng.choice(KINDS)
    kind = kind or drawn
    room = rng.sample([f"{name} {i + 1}" for name, count in PLACES.items() for i in range(count)], places)
    room.sort()
    target_kind, *other_kinds = rng.sample(OBJECTS, 4)
    targets = (f"{target_kind} 1", f"{target_kind} 2")[: 2 if kind == "pick two" else 1]
    things = [*targets, *(f"{other} {rng.randint(1, 2)}" for other in other_kinds)]
    if kind == "look":
        things.append(LAMP)
    goal = "" if kind == "look" else rng.choice(room)
    contents: dict[str, tuple[str, ...]] = {place: () for place in room}
    for thing in things:
        usual = USUAL_PLACES[kind_of(thing)]
        free = [place for place in room if place != goal and len(contents[place]) < 3]
        weights = [USUAL_WEIGHT if kind_of(place) in usual else 1.0 for place in free]
        place = rng.choices(free, weights)[0]
        contents[place] = (*contents[place], thing)
    tools: tuple[str, ...] = ()
    if kind in TOOLS:
        tools = (f"{TOOLS[kind]} 1", f"{TOOLS[kind]} 2")
    broken = rng.choice(tools) if tools and rng.random() < 0.7 else ""
    world = World(kind, targets, goal, tuple(room), tools, broken, contents, horizon=0)
    return replace(world, horizon=_shortest_plan(world) + slack)


def _shortest_plan(world: World) -> int:
    """The number of steps that an actor needs who knows the room."""

    def reach(place: str) -> int:
        return 2 if kind_of(place) in CLOSED else 1

    steps = 0
    opened: set[str] = set()
    for target in world.targets:
        place = world.place_of(target)
        steps += 1 if place in opened else reach(place)
        steps += 1
        opened.add(place)
        if world.kind in TOOLS:
            steps += 2
        if world.kind == "look":
            lamp = world.place_of(LAMP)
            steps += (0 if lamp == place else reach(lamp)) + 1
        else:
            steps += (1 if world.goal in opened else reach(world.goal)) + 1
            opened.add(world.goal)
    return steps


class Household(Environment):
    """One play of one task."""

    def __init__(self, task: Task, world: World) -> None:
        self.task = task
        self.world = world
        self.horizon = world.horizon
        self.reset()

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. The room depends on the task alone, so ``seed`` and ``options`` change nothing."""
        self._at = ""
        self._holding = ""
        self._opened: set[str] = set()
        self._contents = {place: list(things) for place, things in self.world.contents.items()}
        self._treated: set[str] = set()
        self._done: list[str] = []
        self._steps = 0
        listed = " ".join((*self.world.places, *self.world.tools))
        return f"places: {listed}\ntask: {_task_text(self.world)}", {"success": False}

    def step(self, action: str) -> StepResult:
        self._steps += 1
        before = len(self._done)
        observation = self._act(action.strip().lower())
        goals = self._sub_goals()
        reward = (len(self._done) - before) / goals
        success = len(self._done) == goals
        truncated = not success and self._steps >= self.horizon
        return observation, reward, success, truncated, {"success": success}

    def snapshot(self) -> dict[str, Any]:
        return {
            "at": self._at,
            "holding": self._holding,
            "opened": sorted(self._opened),
            "contents": {place: list(things) for place, things in self._contents.items()},
            "treated": sorted(self._treated),
            "done": list(self._done),
            "steps": self._steps,
        }

    def restore(self, state: Any) -> None:
        self._at = state["at"]
        self._holding = state["holding"]
        self._opened = set(state["opened"])
        self._contents = {place: list(things) for place, things in state["contents"].items()}
        self._treated = set(state["treated"])
        self._done = list(state["done"])
        self._steps = state["steps"]

    def _sub_goals(self) -> int:
        if self.world.kind in TOOLS:
            return 3
        return 4 if self.world.kind == "pick two" else 2

    def _reach(self, sub_goal: str) -> None:
        if sub_goal not in self._done:
            self._done.append(sub_goal)

    def _act(self, action: str) -> str:
        verb, _, rest = action.partition(" ")
        match verb:
            case "go":
                return self._go(rest.removeprefix("to "))
            case "open":
                return self._open(rest)
            case "close":
                return self._close(rest)
            case "take":
                thing, _, place = rest.partition(" from ")
                return self._take(thing, place)
            case "put" | "move":
                return self._put(*_split_put(rest))
            case "clean" | "heat" | "cool":
                thing, _, tool = rest.partition(" with ")
                return self._treat(verb, thing, tool)
            case "use":
                return self._use(rest)
            case "look":
                return self._see(self._at) if self._at in self._contents else "you are in the room"
            case "inventory":
                return f"you hold {self._holding or 'nothing'}"
        return "nothing happens"

    def _is_shut(self, place: str) -> bool:
        return kind_of(place) in CLOSED and place not in self._opened

    def _see(self, place: str) -> str:
        if self._is_shut(place):
            return "it is closed"
        return "you see " + (" ".join(self._contents[place]) or "nothing")

    def _go(self, place: str) -> str:
        if place in self._contents:
            self._at = place
            return self._see(place)
        if place in self.world.tools:
            self._at = place
            return "you are there"
        return "nothing happens"

    def _open(self, place: str) -> str:
        if place != self._at or place not in self._contents or not self._is_shut(place):
            return "nothing happens"
        self._opened.add(place)
        return self._see(place)

    def _close(self, place: str) -> str:
        if place != self._at or place not in self._opened:
            return "nothing happens"
        self._opened.discard(place)
        return "you close it"

    def _reachable(self, place: str) -> bool:
        return place == self._at and place in self._contents and not self._is_shut(place)

    def _take(self, thing: str, place: str) -> str:
        if self._holding or not self._reachable(place) or thing not in self._contents[place] or thing == LAMP:
            return "nothing happens"
        self._contents[place].remove(thing)
        self._holding = thing
        if thing in self.world.targets:
            self._reach(f"take {thing}")
        return f"you take {thing}"

    def _put(self, thing: str, place: str) -> str:
        if not thing or thing != self._holding or not self._reachable(place):
            return "nothing happens"
        self._contents[place].append(thing)
        self._holding = ""
        needs_treatment = self.world.kind in TOOLS and thing not in self._treated
        if thing in self.world.targets and place == self.world.goal and not needs_treatment:
            self._reach(f"put {thing}")
        return f"you put {thing}"

    def _treat(self, verb: str, thing: str, tool: str) -> str:
        if not thing or thing != self._holding or tool != self._at or kind_of(tool) != TOOLS[verb]:
            return "nothing happens"
        if tool == self.world.broken:
            return "it is broken"
        if verb == self.world.kind and thing in self.world.targets:
            self._treated.add(thing)
            self._reach(f"{verb} {thing}")
        return f"you {verb} {thing}"

    def _use(self, thing: str) -> str:
        if thing != LAMP or self._at not in self._contents or LAMP not in self._contents[self._at]:
            return "nothing happens"
        if self._is_shut(self._at):
            return "nothing happens"
        if self.world.kind == "look" and self._holding in self.world.targets:
            self._reach("look")
        return f"you use {LAMP}"


def know_all(world: World) -> str:
    """A reflection by someone who knows the room."""
    things = (*world.targets, LAMP) if world.kind == "look" else world.targets
    said = [f"{thing} is in {world.place_of(thing)}." for thing in things]
    if world.kind in TOOLS:
        said.append(f"use {next(tool for tool in world.tools if tool != world.broken)}.")
        said.append(f"remember to {world.kind} it.")
    return " ".join(said)


def _task_text(world: World) -> str:
    first = world.targets[0]
    match world.kind:
        case "look":
            return f"look at {first} under {LAMP}"
        case "pick":
            return f"put {first} in {world.goal}"
        case "pick two":
            return f"put {first} and {world.targets[1]} in {world.goal}"
    return f"{world.kind} {first} and put it in {world.goal}"


def _split_put(rest: str) -> tuple[str, str]:
    for word in (" in/on ", " in ", " on ", " to "):
        thing, found, place = rest.partition(word)
        if found:
            return thing, place
    return rest, ""


class HouseholdTasks(TaskSet):
    """The household's tasks, a million in each split. Options: the number of ``places``, and of ``slack`` steps."""

    name = "household"

    @checked
    def __init__(
        self, places: Annotated[int, Field(ge=4, le=sum(PLACES.values()))] = 11, slack: NonNegativeInt = 2
    ) -> None:
        self._places = places
        self._slack = slack

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        if offset + count > _SPLIT_SIZE:
            raise ValueError(f"household: split {split} has {_SPLIT_SIZE:,} tasks, {offset + count:,} were asked for")
        return [
            Task(self.name, f"{split}-{index}", split, self._world(split, index).kind)
            for index in range(offset, offset + count)
        ]

    def make(self, task: Task) -> Household:
        return Household(task, self.world(task))

    def oracle(self, task: Task) -> str:
        """All that a retry needs: where everything is, which tool works, what must not be forgotten."""
        return know_all(self.world(task))

    def vague(self, task: Task) -> str:
        """A reflection that says nothing about the task."""
        return "be more careful. try again."

    def world(self, task: Task) -> World:
        """The room behind a task.

        Raises:
            UnknownTaskError: if the id is not of the form ``train-12``.
        """
        split, _, number = task.id.rpartition("-")
        if split not in set(Split) or not number.isdecimal() or int(number) >= _SPLIT_SIZE:
            raise UnknownTaskError(f"household: no task {task.id!r}; ids look like train-0, validation-12, test-7")
        return self._world(Split(split), int(number))

    def _world(self, split: Split, index: int) -> World:
        return draw_world(_SPLIT_SEEDS[split] + index, self._places, self._slack)
