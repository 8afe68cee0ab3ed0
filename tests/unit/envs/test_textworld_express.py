"""TextWorldExpress on its own engine: its games are won by their solutions, lost by mistakes, and repeat exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import fsum
from typing import Any

import pytest
from java_children import java_children

from retro.envs.base import EnvironmentFailedError, StepResult, UnknownTaskError
from retro.envs.java import find_java
from retro.envs.java_games import JavaPlay
from retro.envs.testing import check_environment
from retro.envs.textworld_express import GAMES, TextworldExpressTasks
from retro.prompts import load_prompts
from retro.types import Split, Task

upstream_package = pytest.importorskip(
    "textworld_express", reason="needs the engine: pip install 'retro[textworld-express]'"
)
try:
    find_java()
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def tasks() -> Iterator[TextworldExpressTasks]:
    tasks = TextworldExpressTasks(engines=2)
    yield tasks
    tasks.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Any]:
    """Upstream's own Python class, in a Java process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{find_java().parent}{os.pathsep}{os.environ['PATH']}")
        environment = upstream_package.TextWorldExpressEnv()
    yield environment
    environment.close()


def named(task_id: str) -> Task:
    return Task("textworld-express", task_id, Split.TRAIN)


@pytest.fixture
def play(tasks: TextworldExpressTasks, request: pytest.FixtureRequest) -> Iterator[JavaPlay]:
    play = tasks.make(named(request.param))
    play.reset()
    yield play
    play.close()


def all_of(play: JavaPlay, actions: tuple[str, ...]) -> list[StepResult]:
    return [play.step(action) for action in actions]


@pytest.mark.parametrize("task_id", ["sorting/7", "coin/10001"])
def test_it_keeps_the_contract(tasks: TextworldExpressTasks, task_id: str) -> None:
    check_environment(tasks, named(task_id), tasks.gold_path(named(task_id)))


def test_all_games_are_won_within_the_limit_by_their_solutions(tasks: TextworldExpressTasks) -> None:
    for split in Split:
        for task in tasks.tasks(split, len(GAMES)):
            play = tasks.make(task)
            play.reset()
            turns = all_of(play, tasks.gold_path(task))
            play.close()
            assert turns[-1][2:] == (True, False, {"success": True}), task.id
            assert fsum(turn[1] for turn in turns) == pytest.approx(1), task.id


def test_detours_are_left_out(tasks: TextworldExpressTasks) -> None:
    task = named("peckingorder/0")
    assert [action.split()[0] for action in tasks.gold_path(task)] == ["take"] * 4


def test_the_oracle_tells_the_solution(tasks: TextworldExpressTasks) -> None:
    told = tasks.oracle(named("cookingworld/5"))
    assert told is not None
    assert all(action in told for action in tasks.gold_path(named("cookingworld/5")))


def test_games_come_in_turn(tasks: TextworldExpressTasks) -> None:
    assert [task.kind for task in tasks.tasks(Split.TEST, 16)] == [*GAMES, *GAMES]
    assert [task.id for task in tasks.tasks(Split.VALIDATION, 2, offset=8)] == ["cookingworld/10001", "twc/10001"]


def test_the_games_and_the_seeds_are_upstreams(tasks: TextworldExpressTasks, upstream: Any) -> None:
    assert set(upstream.getGameNames()) == set(GAMES)
    upstream.load("coin", "")
    for split, seeds in (
        (Split.TRAIN, upstream.getValidSeedsTrain()),
        (Split.VALIDATION, upstream.getValidSeedsDev()),
        (Split.TEST, upstream.getValidSeedsTest()),
    ):
        ours = [task.id for task in tasks.tasks(split, 8000) if task.kind == "coin"]
        assert ours == [f"coin/{seed}" for seed in seeds]


@pytest.mark.parametrize("task_id", ["coin", "coin/1000", "coin/07", "coin/-1", "coin/30000", "chess/0"])
def test_an_id_that_there_is_not(tasks: TextworldExpressTasks, task_id: str) -> None:
    with pytest.raises(UnknownTaskError, match=r"ids look like cookingworld/0 \(train\)"):
        tasks.make(named(task_id))


def test_more_tasks_than_there_are(tasks: TextworldExpressTasks) -> None:
    with pytest.raises(ValueError, match=r"split test has 8,000 tasks, 8,001 were asked for"):
        tasks.tasks(Split.TEST, 1, offset=8000)


@pytest.mark.parametrize("play", ["arithmetic/20001"], indirect=True)
def test_a_wrong_answer_ends_a_play_with_nothing(play: JavaPlay) -> None:
    play.step("take math problem")
    observation, reward, *_ = play.step("read math problem")
    assert observation.startswith("Your task is to solve the following math problem: add 3 and 31 .")
    assert reward == 0.5
    play.step("take 6 cabbages")
    observation, reward, terminated, truncated, info = play.step("put 6 cabbages in box")
    assert observation == "You put the 6 cabbages in the box."
    assert (reward, terminated, truncated, info) == (-0.5, True, False, {"success": False})


@pytest.mark.parametrize("play", ["coin/3"], indirect=True)
def test_capitals_and_spaces_do_not_matter(play: JavaPlay) -> None:
    assert play.step("  Open Door To South ")[0].startswith("You open the wood door, revealing ")
    assert play.step("TAKE COIN")[0] == "You take the coin."


@pytest.mark.parametrize("play", ["coin/10001"], indirect=True)
@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("", "That is no action."),
        ("take stove", "'take stove' is not possible here."),
        ("move east\nmove east", r"'move east\nmove east' is not one line of text: give one action at a time."),
        ("z" * 10_000, f"'{'z' * 99}…' is too long for an action."),
    ],
)
def test_what_is_no_action_is_told_what_is(play: JavaPlay, action: str, says: str) -> None:
    observation, reward, terminated, truncated, info = play.step(action)
    assert observation.startswith(f"{says} Allowed: look around, inventory, move DIRECTION")
    assert (reward, terminated, truncated, info) == (0, False, False, {"success": False})


def test_what_is_said_to_be_allowed_is_what_upstream_takes(tasks: TextworldExpressTasks, upstream: Any) -> None:
    for task in tasks.tasks(Split.TRAIN, 2 * len(GAMES)):
        if task.kind == "simonsays":
            continue
        play = tasks.make(task)
        play.reset()
        said = play.step("")[0].partition("Allowed: ")[2]
        play.close()
        allowed = {word.rstrip(".,:;") for word in said.replace("/", " ").split()}
        seed = int(task.id.partition("/")[2])
        _, infos = upstream.reset(seed, "train", task.kind, "", generateGoldPath=True)
        for action in upstream.getGoldActionSequence():
            assert {text.split()[0] for text in infos["validActions"]} <= allowed, task.id
            infos = upstream.step(action)[3]


@pytest.mark.parametrize("play", ["coin/10001"], indirect=True)
def test_every_step_counts(play: JavaPlay) -> None:
    turns = all_of(play, ("",) * 50)
    assert [turn[3] for turn in turns] == [False] * 49 + [True]


def test_the_prompts_examples_are_worded_as_the_engine_words_them(tasks: TextworldExpressTasks) -> None:
    actor = load_prompts("textworld-express").actor("", (), ())
    for task_id in ("coin/0", "arithmetic/0", "cookingworld/0"):
        play = tasks.make(named(task_id))
        opening, _ = play.reset()
        play.close()
        assert opening.split("\n\n")[0] in actor


def test_a_dead_engine_fails_one_play_and_the_next_one_has_another() -> None:
    before = java_children()
    tasks = TextworldExpressTasks(games=["twc"], engines=1)
    play = tasks.make(named("twc/3"))
    opening = play.reset()
    for process in java_children() - before:
        process.kill()
    with pytest.raises(EnvironmentFailedError, match=r"textworld-express: its Java process ended \(status -9\)"):
        play.step("look around")
    again = tasks.make(named("twc/3"))
    assert again.reset() == opening
    tasks.close()


def test_a_forgotten_play_gives_its_engine_back() -> None:
    tasks = TextworldExpressTasks(engines=1)
    tasks.make(named("coin/0")).reset()
    tasks.make(named("coin/0")).reset()
    tasks.close()


def test_parameters_reach_the_engine() -> None:
    small = TextworldExpressTasks(games=["coin"], parameters={"coin": "numLocations=1,includeDoors=0"}, engines=1)
    play = small.make(named("coin/0"))
    opening, _ = play.reset()
    assert "a coin" in opening
    assert "To the " not in opening
    small.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"games": ["chess"]}, "games: there is no 'chess'; there are: cookingworld, "),
        ({"games": "coin"}, "games: .*Sequence"),
        ({"games": []}, "games: .*at least 1 item"),
        ({"parameters": ["coin"]}, "parameters: Input should be a valid dictionary"),
        ({"parameters": {"chess": ""}}, "parameters: 'chess' is not one of `games`"),
        ({"parameters": {"coin": "numLocations=99"}}, "parameters of coin: Number of locations must be less than"),
        ({"parameters": {"coin": "size=3"}}, r"parameters of coin: Unrecognized property name \(size\)"),
        ({"steps": "50"}, "steps: Input should be a valid integer"),
        ({"engines": 0}, "engines: Input should be greater than 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"textworld-express: {says}"):
        TextworldExpressTasks(**options)
