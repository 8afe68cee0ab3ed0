"""Gymnasium environments as task sets: texts, named actions, returns, ends, seeds, and what is wrong with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gymnasium", reason="needs pip install 'retro[gymnasium]'")

import gymnasium
from gymnasium import spaces

from retro.config import ConfigError
from retro.envs import make_taskset
from retro.envs.base import EnvironmentFailedError, UnknownTaskError
from retro.envs.gymnasium import GymnasiumPlay, GymnasiumTasks
from retro.envs.seeds import Rules
from retro.envs.testing import check_environment
from retro.types import Split, Task

SPACE = spaces.Text(10, min_length=1, charset="abcdefghijklmnopqrstuvwxyz ")


class Corridor(gymnasium.Env[Any, Any]):
    """The door is ``steps`` away, left or right, as the seed has it; a step away costs 0.1, the door pays 1."""

    observation_space = spaces.Text(100)

    def __init__(self, action_space: spaces.Space[Any] = SPACE, steps: int = 2, info: str = "") -> None:
        self.action_space = action_space
        self.steps = steps
        self.info = info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.steps if self.np_random.random() < 0.5 else -self.steps
        return "a corridor: find the door", {}

    def meaning(self, action: Any) -> int:
        return {"go left": 1, "go right": -1}.get(action, 0)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        distance = abs(self.left)
        self.left -= self.meaning(action)
        found = self.left == 0
        info = {"success": found} if self.info == "success" else {}
        seen = "the door" if found else f"you did {action!s}"
        return seen, 1.0 if found else -0.1 * (abs(self.left) > distance), found and self.info != "goes on", False, info


class Levers(Corridor):
    """The same with two numbered actions, the first of which is 3."""

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(2, start=3))

    def meaning(self, action: Any) -> int:
        return {3: 1, 4: -1}[int(action)]


class Vectors(Corridor):
    """The same with an action of two numbers."""

    def __init__(self) -> None:
        super().__init__(spaces.MultiDiscrete([2, 3]))

    def meaning(self, action: Any) -> int:
        return int(action[1]) - 1


class Blind(Corridor):
    """Sees a number."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return 7, super().reset(seed=seed)[1]


class Faltering(Corridor):
    """Sees a number once it has begun, or is paid with none."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if action == "go left":
            return 7, 0.0, False, False, {}
        return "nothing", float("nan"), False, False, {}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    made: dict[str, Any] = {
        "Corridor": Corridor,
        "Levers": Levers,
        "Vectors": Vectors,
        "Blind": Blind,
        "Faltering": Faltering,
    }
    for name, environment in made.items():
        gymnasium.register(f"retro-test/{name}-v0", entry_point=environment, max_episode_steps=6)
    gymnasium.register("retro-test/Endless-v0", entry_point=made["Corridor"])
    yield
    for name in (*made, "Endless"):
        del gymnasium.registry[f"retro-test/{name}-v0"]


def tasks(name: str = "Corridor", **options: Any) -> GymnasiumTasks:
    return GymnasiumTasks(f"retro-test/{name}-v0", **options)


def begun(taskset: GymnasiumTasks, task_id: str = "seed-0") -> GymnasiumPlay:
    play = taskset.make(Task("gymnasium", task_id, Split.TRAIN))
    play.reset()
    return play


def the_way(name: str = "Corridor", seed: int = 0) -> str:
    """Where the door is."""
    engine: Any = gymnasium.make(f"retro-test/{name}-v0").unwrapped
    engine.reset(seed=seed)
    return "left" if engine.left > 0 else "right"


@pytest.mark.parametrize(
    "taskset",
    [
        tasks,
        lambda: tasks(return_range=[-0.6, 1], blocking=True),
        lambda: tasks("Levers", actions=["go left", "go right"], horizon=9),
        lambda: tasks("Vectors", actions={"go left": [0, 2], "go right": [1, 0], "wait": [0, 1]}),
        lambda: tasks(kwargs={"info": "goes on"}, return_range=[0, 10]),
    ],
    ids=["texts", "scaled", "names", "mapping", "goes-on"],
)
def test_it_keeps_the_contract(taskset: Any) -> None:
    for way in ("left", "right"):
        check_environment(taskset(), actions=["fly", "go left", f"go {way}", f"go {way}", f"go {way}"])


def test_a_seed_is_a_task() -> None:
    taskset = tasks()
    assert [task.id for task in taskset.tasks(Split.TRAIN, 2, offset=3)] == ["seed-3", "seed-4"]
    assert taskset.tasks(Split.TEST, 1) == [
        Task("gymnasium", "seed-2000000", Split.TEST, kind="retro-test/Corridor-v0")
    ]
    ways = [the_way(seed=seed) for seed in range(8)]
    assert set(ways) == {"left", "right"}
    for seed, way in enumerate(ways):
        play = begun(taskset, f"seed-{seed}")
        assert play.reset(seed=99)[0] == "a corridor: find the door"
        play.step(f"go {way}")
        assert play.step(f"go {way}")[0] == "the door"


@pytest.mark.parametrize("task_id", ["seed-3000000", "seed-", "seed--1", "sead-1", "7"])
def test_an_unknown_task_is_said(task_id: str) -> None:
    with pytest.raises(UnknownTaskError, match="ids are seed-0 to seed-2999999"):
        tasks().make(Task("gymnasium", task_id, Split.TRAIN))


def test_rewards_add_up_to_the_scaled_and_clipped_sum() -> None:
    way = the_way()
    away = "right" if way == "left" else "left"
    play = begun(tasks(return_range=[-0.3, 0.5]))
    results = [play.step(f"go {side}") for side in (away, away, way, way, way, way)]
    # sums -0.1, -0.2, -0.2 … -0.2, 0.8: shares 1/4, 1/8, 1/8 … 1 (clipped)
    returns = list(itertools.accumulate(result[1] for result in results))
    assert returns == pytest.approx([0.25, 0.125, 0.125, 0.125, 0.125, 1.0])
    assert returns[-1] == 1.0  # exactly
    assert results[-1][2:] == (True, False, {"success": True})


@given(st.lists(st.floats(-1e6, 1e6), max_size=30), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_differences_of_returns_add_up_exactly(sums: list[float], low: float, width: float) -> None:
    rules = Rules(low, low + width, success_at=1.0, horizon=1)
    returns = [rules.return_of(total) for total in sums]
    rewards = [after - before for before, after in itertools.pairwise([0.0, *returns])]
    assert list(itertools.accumulate(rewards)) == returns
    assert all(0 <= value <= 1 for value in returns)


def test_success_is_what_info_says_else_the_return() -> None:
    way = the_way()
    for options, success in (
        ({}, True),
        ({"return_range": [0, 2]}, False),
        ({"return_range": [0, 2], "success_at": 0.5}, True),
        ({"return_range": [0, 2], "kwargs": {"info": "success"}}, True),
    ):
        play = begun(tasks(**options))
        play.step(f"go {way}")
        assert play.step(f"go {way}")[2:] == (True, False, {"success": success}), options


def test_what_reaches_its_goal_at_the_step_limit_is_a_success() -> None:
    play = begun(tasks(kwargs={"info": "goes on"}, horizon=3))
    way = the_way()
    assert play.step(f"go {way}")[4] == {"success": False}
    assert play.step(f"go {way}")[2:] == (False, False, {"success": False})  # it may still lose what it has
    assert play.step("wait")[2:] == (True, False, {"success": True})


def test_an_action_that_is_none_counts_and_is_told_what_is_allowed() -> None:
    play = begun(tasks(horizon=2))
    observation, reward, terminated, truncated, _ = play.step("Fly!" * 50)
    assert observation.startswith("'Fly!Fly!")
    assert observation.endswith("… is not an action; allowed: 1 to 10 characters of ' abcdefghijklmnopqrstuvwxyz'")
    assert len(observation) < 200
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert play.step("")[2:4] == (False, True)
    assert play.step("go left") == ("the play is over", 0.0, False, True, {"success": False})
    named = begun(tasks("Levers", actions=["go left", "go right"]))
    assert named.step("go up")[0] == "'go up' is not an action; allowed: go left, go right"
    assert named.step(" GO Left ")[0] == "you did 3"


def test_the_step_limit_is_the_registered_one_or_the_option() -> None:
    assert begun(tasks()).horizon == 6
    assert begun(tasks(horizon=4)).horizon == 4
    play = begun(tasks())
    results = [play.step("wait") for _ in range(6)]
    assert [result[3] for result in results] == [False] * 5 + [True]


def test_a_snapshot_is_the_actions_so_far() -> None:
    play = begun(tasks())
    play.step("go left")
    play.step("FLY")
    assert play.snapshot() == {"actions": ["go left", "FLY"]}
    restored = begun(tasks())
    restored.restore(play.snapshot())
    assert restored.step("go left") == play.step("go left")


def test_an_environment_that_breaks_is_reported() -> None:
    play = begun(tasks("Faltering"))
    with pytest.raises(EnvironmentFailedError, match="an observation was int, not a text"):
        play.step("go left")
    play.reset()
    with pytest.raises(EnvironmentFailedError, match="'go right' was rewarded with nan"):
        play.step("go right")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "id: required, and not given"),
        ({"id": 7}, "id: Input should be a valid string"),
        ({"id": "retro-test/Corridr-v0"}, "cannot be made: .*Corridr"),
        ({"id": "no_such_module:Corridor-v0"}, "cannot be made: No module named 'no_such_module'"),
        ({"id": "retro-test/Corridor-v0", "kwargs": {"stepps": 1}}, "cannot be made: .*stepps"),
        ({"id": "retro-test/Blind-v0"}, "opens with int, not with a text; .*ObservationWrapper"),
        ({"id": "retro-test/Levers-v0"}, r"Discrete\(2, start=3\), not texts: give their names"),
        ({"id": "retro-test/Levers-v0", "actions": ["left"]}, "1 names for Discrete"),
        ({"id": "retro-test/Levers-v0", "actions": "left"}, "must be a list of names, or a mapping"),
        ({"id": "retro-test/Levers-v0", "actions": [1, 2]}, "must be a list of names, or a mapping"),
        ({"id": "retro-test/Levers-v0", "actions": ["Left", "left"]}, "are the same"),
        ({"id": "retro-test/Levers-v0", "actions": {"left": 1}}, "'left': 1 is not an action of Discrete"),
        ({"id": "retro-test/Levers-v0", "actions": {"left": "up"}}, "'left': 'up' is not an action of Discrete"),
        ({"id": "retro-test/Endless-v0"}, "registered without a step limit: give one"),
        ({"id": "retro-test/Corridor-v0", "horizon": 0}, "horizon: Input should be greater than 0"),
        ({"id": "retro-test/Corridor-v0", "horizon": "ten"}, "horizon: Input should be a valid integer"),
        ({"id": "retro-test/Corridor-v0", "return_range": [1, 1]}, "return_range: 1 must be below 1"),
        ({"id": "retro-test/Corridor-v0", "return_range": "01"}, "return_range: .*Sequence"),
        ({"id": "retro-test/Corridor-v0", "success_at": "1"}, "success_at: Input should be a valid number"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"environment\.options of gymnasium: .*{says}"):
        make_taskset("gymnasium", options)
