"""The household: each kind of task played by hand, tasks rebuilt from their ids, state that can be put aside."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.envs.base import UnknownTaskError
from retro.envs.household import CLOSED, KINDS, LAMP, TOOLS, Household, HouseholdTasks, World, draw_world, kind_of
from retro.types import Split, Task

CONTENTS = {
    "cabinet 1": ("mug 1",),
    "desk 1": ("apple 1", LAMP),
    "drawer 2": (),
    "shelf 1": ("mug 2",),
}
MUG_OUT = [
    ("go to cabinet 1", "it is closed", 0),
    ("open cabinet 1", "you see mug 1", 0),
    ("take mug 1 from cabinet 1", "you take mug 1", 1),
]


def room(kind: str, targets: tuple[str, ...] = ("mug 1",), goal: str = "shelf 1", horizon: int = 20) -> World:
    """Four places; of a kind with tools, the first is broken."""
    tools = (f"{TOOLS[kind]} 1", f"{TOOLS[kind]} 2") if kind in TOOLS else ()
    return World(kind, targets, goal, tuple(CONTENTS), tools, tools[0] if tools else "", CONTENTS, horizon)


def play(world: World) -> Household:
    return Household(Task("household", "by hand", Split.TRAIN), world)


PLAYS = {
    "pick": (
        room("pick"),
        "put mug 1 in shelf 1",
        [*MUG_OUT, ("go to shelf 1", "you see mug 2", 0), ("put mug 1 in shelf 1", "you put mug 1", 1)],
    ),
    "look": (
        room("look", goal=""),
        "look at mug 1 under desklamp 1",
        [*MUG_OUT, ("go to desk 1", "you see apple 1 desklamp 1", 0), ("use desklamp 1", "you use desklamp 1", 1)],
    ),
    "clean": (  # the first tool is broken
        room("clean"),
        "clean mug 1 and put it in shelf 1",
        [
            *MUG_OUT,
            ("go to sinkbasin 1", "you are there", 0),
            ("clean mug 1 with sinkbasin 1", "it is broken", 0),
            ("go to sinkbasin 2", "you are there", 0),
            ("clean mug 1 with sinkbasin 2", "you clean mug 1", 1),
            ("go to shelf 1", "you see mug 2", 0),
            ("put mug 1 in shelf 1", "you put mug 1", 1),
        ],
    ),
    "heat": (  # put down untreated first, which does not count; nothing counts twice
        room("heat"),
        "heat mug 1 and put it in shelf 1",
        [
            *MUG_OUT,
            ("go to shelf 1", "you see mug 2", 0),
            ("put mug 1 in shelf 1", "you put mug 1", 0),
            ("take mug 1 from shelf 1", "you take mug 1", 0),
            ("go to microwave 2", "you are there", 0),
            ("heat mug 1 with microwave 2", "you heat mug 1", 1),
            ("heat mug 1 with microwave 2", "you heat mug 1", 0),
            ("go to shelf 1", "you see mug 2", 0),
            ("put mug 1 in shelf 1", "you put mug 1", 1),
        ],
    ),
    "cool": (  # a closed goal takes nothing
        room("cool", ("apple 1",), "drawer 2"),
        "cool apple 1 and put it in drawer 2",
        [
            ("go to desk 1", "you see apple 1 desklamp 1", 0),
            ("take apple 1 from desk 1", "you take apple 1", 1),
            ("go to fridge 2", "you are there", 0),
            ("cool apple 1 with fridge 2", "you cool apple 1", 1),
            ("go to drawer 2", "it is closed", 0),
            ("put apple 1 in drawer 2", "nothing happens", 0),
            ("open drawer 2", "you see nothing", 0),
            ("put apple 1 in/on drawer 2", "you put apple 1", 1),
        ],
    ),
    "pick two": (
        room("pick two", ("mug 1", "mug 2"), "desk 1"),
        "put mug 1 and mug 2 in desk 1",
        [
            *MUG_OUT,
            ("go to desk 1", "you see apple 1 desklamp 1", 0),
            ("put mug 1 in desk 1", "you put mug 1", 1),
            ("go to shelf 1", "you see mug 2", 0),
            ("take mug 2 from shelf 1", "you take mug 2", 1),
            ("go to desk 1", "you see apple 1 desklamp 1 mug 1", 0),
            ("move mug 2 to desk 1", "you put mug 2", 1),
        ],
    ),
}
"""World, the task's words, and steps: action, observation, sub-goals reached by it."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_played_by_hand(kind: str) -> None:
    world, words, steps = PLAYS[kind]
    household = play(world)
    opening, info = household.reset()
    assert opening == f"places: {' '.join((*world.places, *world.tools))}\ntask: {words}"
    assert info == {"success": False}
    sub_goals = sum(reached for _, _, reached in steps)
    for number, (action, expected, reached) in enumerate(steps, 1):
        observation, reward, terminated, truncated, info = household.step(action)
        assert observation == expected
        assert reward == pytest.approx(reached / sub_goals)
        assert terminated == info["success"] == (number == len(steps))
        assert not truncated
    assert household.reset()[0] == opening
    assert household.step(steps[0][0])[0] == steps[0][1]  # everything is back in its place


def test_the_horizon_ends_an_episode_with_what_was_reached() -> None:
    household = play(room("pick", horizon=3))
    ends = [household.step(action)[1:] for action, _, _ in MUG_OUT]
    assert ends[1] == (0.0, False, False, {"success": False})
    assert ends[2] == (0.5, False, True, {"success": False})
    household = play(room("pick", horizon=5))
    assert [household.step(action)[2:4] for action, _, _ in PLAYS["pick"][2]][-1] == (True, False)  # just in time


@pytest.mark.parametrize(
    "action",
    [
        "",
        "fly away",
        "go to attic 1",
        "open cabinet 1",  # from afar
        "open desk 1",
        "close cabinet 1",
        "take mug 1 from cabinet 1",
        "take desklamp 1 from desk 1",
        "take from",
        "put mug 1 in shelf 1",
        "put",
        "clean mug 1 with sinkbasin 1",
        "heat mug 1 with microwave 1",
        "use desklamp 1",
    ],
)
def test_an_invalid_action_is_an_observation(action: str) -> None:
    household = play(room("clean"))
    before = household.snapshot()
    assert household.step(action) == ("nothing happens", 0.0, False, False, {"success": False})
    assert household.snapshot() == {**before, "steps": 1}


@given(st.text())
def test_any_text_is_answered(action: str) -> None:
    observation, reward, *_ = play(room("heat")).step(action)
    assert observation
    assert reward == 0


def test_looking_and_the_inventory_change_nothing_but_time() -> None:
    household = play(room("pick"))
    assert household.step("look")[0] == "you are in the room"
    assert household.step("inventory")[0] == "you hold nothing"
    for action, _, _ in MUG_OUT:
        household.step(action)
    assert household.step("LOOK ")[0] == "you see nothing"
    assert household.step("inventory")[0] == "you hold mug 1"
    assert household.step("close cabinet 1")[0] == "you close it"
    assert household.step("look")[0] == "it is closed"


VISITS = [
    *([f"go to {at}", f"open {at}", f"take {thing} from {at}"] for at, held in CONTENTS.items() for thing in held),
    *([f"go to {place}", f"put {thing} in {place}"] for place in CONTENTS for thing in ("mug 1", "mug 2", "apple 1")),
    *([f"go to {tool} {i}", f"{verb} mug 1 with {tool} {i}"] for verb, tool in TOOLS.items() for i in (1, 2)),
    ["go to desk 1", f"use {LAMP}"],
    ["close cabinet 1"],
    ["inventory"],
    ["nonsense"],
]  # fmt: skip
"""What is worth trying in the room, as pieces of an episode."""


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.sampled_from(VISITS), max_size=12), st.data())
def test_a_snapshot_goes_on_like_the_straight_play_and_returns_stay_in_range(
    kind: str, visits: list[list[str]], data: st.DataObject
) -> None:
    actions = [action for visit in visits for action in visit]
    cut = data.draw(st.integers(0, len(actions)))
    world = PLAYS[kind][0]
    straight, begun, restored = play(world), play(world), play(world)
    results: list[Any] = []
    for action in actions:
        results.append(straight.step(action))
        if results[-1][2]:
            break
    rewards = [reward for _, reward, *_ in results]
    assert all(reward >= 0 for reward in rewards)
    assert sum(rewards) <= 1 + 1e-9
    assert any(terminated for _, _, terminated, _, _ in results) == (sum(rewards) > 1 - 1e-9)

    played = actions[: len(results)]
    assert [begun.step(action) for action in played[:cut]] == results[:cut]
    state = begun.snapshot()
    text = json.dumps(state)
    restored.restore(json.loads(text))
    assert [begun.step(action) for action in played[cut:]] == results[cut:]
    assert json.dumps(state) == text  # going on does not change what was put aside
    assert [restored.step(action) for action in played[cut:]] == results[cut:]
    assert restored.snapshot() == straight.snapshot()


def test_a_task_is_rebuilt_from_its_id_alone() -> None:
    tasks = HouseholdTasks().tasks(Split.VALIDATION, 50, offset=7)
    assert [task.id for task in tasks[:2]] == ["validation-7", "validation-8"]
    assert {task.kind for task in tasks} == set(KINDS)
    for task in tasks:
        bare = replace(task, kind="")
        assert HouseholdTasks().world(bare) == HouseholdTasks().world(task)
        assert HouseholdTasks().make(bare).reset() == HouseholdTasks().make(task).reset(seed=5)
        assert HouseholdTasks().world(task).kind == task.kind


def test_splits_are_disjoint() -> None:
    taskset = HouseholdTasks()
    drawn = [str(taskset.world(task)) for split in Split for task in taskset.tasks(split, 200)]
    assert len(set(drawn)) == len(drawn)
    for split in Split:
        assert taskset.tasks(split, 1, offset=999_999)
        with pytest.raises(ValueError, match="1,000,000 tasks"):
            taskset.tasks(split, 2, offset=999_999)


@pytest.mark.parametrize("identity", ["attic-1", "train", "train-", "train--1", "train-1000000", "train-one", ""])
def test_what_is_no_task_is_named(identity: str) -> None:
    with pytest.raises(UnknownTaskError, match="ids look like train-0"):
        HouseholdTasks().make(Task("household", identity, Split.TRAIN))


@pytest.mark.parametrize(
    ("options", "says"), [({"places": 3}, "places"), ({"places": 99}, "places"), ({"slack": -1}, "slack")]
)
def test_options_that_make_no_room(options: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HouseholdTasks(**options)


def plan(opening: str, told: str) -> list[str]:
    """What someone does who has read the opening and the oracle's reflection, and nothing else."""
    task = opening.partition("task: ")[2]
    name = r"([a-z]+ \d+)"
    places = dict(re.findall(f"{name} is in {name}\\.", told))
    treatment, tool = re.search(r"remember to (\w+) it", told), re.search(f"use {name}\\.", told)
    goal = re.search(f"in {name}$", task)
    actions: list[str] = []
    opened: set[str] = set()

    def go(place: str) -> None:
        actions.append(f"go to {place}")
        if kind_of(place) in CLOSED and place not in opened:
            actions.append(f"open {place}")
        opened.add(place)

    for target in (thing for thing in places if thing != LAMP):
        go(places[target])
        actions.append(f"take {target} from {places[target]}")
        if treatment and tool:
            actions.extend([f"go to {tool[1]}", f"{treatment[1]} {target} with {tool[1]}"])
        if goal is None:
            if places[LAMP] != places[target]:
                go(places[LAMP])
            actions.append(f"use {LAMP}")
        else:
            go(goal[1])
            actions.append(f"put {target} in {goal[1]}")
    return actions


@pytest.mark.parametrize("slack", [0, 2])
def test_what_the_oracle_says_is_enough_and_leaves_the_slack(slack: int) -> None:
    taskset = HouseholdTasks(slack=slack)
    for task in taskset.tasks(Split.TEST, 300):
        household = taskset.make(task)
        actions = plan(household.reset()[0], taskset.oracle(task))
        results = [household.step(action) for action in actions]
        assert [terminated for _, _, terminated, _, _ in results] == [False] * (len(actions) - 1) + [True]
        assert not any(truncated for *_, truncated, _ in results)
        assert sum(reward for _, reward, *_ in results) == pytest.approx(1)
        assert taskset.world(task).horizon == len(actions) + slack


def useful_actions(world: World, at: str) -> list[str]:
    """Every action that can change something for the better at ``at``."""
    actions = [f"go to {place}" for place in (*world.places, *world.tools) if place != at]
    for target in world.targets:
        if at in world.tools:
            actions.append(f"{world.kind} {target} with {at}")
        elif at:
            actions.extend([f"take {target} from {at}", f"put {target} in {at}"])
    return [*actions, f"open {at}", f"use {LAMP}"]


def shortest(world: World) -> int:
    """The length of the shortest episode that succeeds, by breadth-first search over all states."""
    household = play(world)
    waiting = deque([(0, household.snapshot())])
    seen: set[str] = set()
    while waiting:
        length, state = waiting.popleft()
        for action in useful_actions(world, state["at"]):
            household.restore(state)
            if household.step(action)[2]:
                return length + 1
            reached = household.snapshot() | {"steps": 0, "done": sorted(household.snapshot()["done"])}
            key = json.dumps(reached, sort_keys=True)
            if key not in seen:
                seen.add(key)
                waiting.append((length + 1, reached))
    raise AssertionError("no episode succeeds")


@pytest.mark.parametrize("kind", KINDS)
def test_the_horizon_is_the_shortest_plan_and_the_slack(kind: str) -> None:
    for seed in range(3):
        world = draw_world(seed, places=4, slack=2, kind=kind)
        assert world.horizon == shortest(world) + 2


def test_a_vague_reflection_says_nothing_of_the_task() -> None:
    taskset = HouseholdTasks()
    said = {taskset.vague(task) for task in taskset.tasks(Split.TRAIN, 20)}
    assert len(said) == 1
    assert not re.search(r"\d", said.pop())
