"""ScienceWorld on its own simulator: upstream's solutions win, plays repeat exactly, no action breaks one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from math import fsum
from typing import Any

import pytest
from java_children import java_children

from retro.envs.base import EnvironmentFailedError, StepResult, UnknownTaskError
from retro.envs.java import find_java
from retro.envs.java_games import JavaPlay
from retro.envs.scienceworld import ScienceworldTasks
from retro.envs.testing import check_environment
from retro.prompts import load_prompts
from retro.types import Split, Task

upstream_package = pytest.importorskip("scienceworld", reason="needs the simulator: pip install 'retro[scienceworld]'")
try:
    find_java()
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)

STEPS = 30


@pytest.fixture(scope="module")
def tasks() -> Iterator[ScienceworldTasks]:
    tasks = ScienceworldTasks(steps=STEPS, engines=2)
    yield tasks
    tasks.close()


def named(task_id: str) -> Task:
    return Task("scienceworld", task_id, Split.TRAIN)


@pytest.fixture
def play(tasks: ScienceworldTasks, request: pytest.FixtureRequest) -> Iterator[JavaPlay]:
    play = tasks.make(named(request.param))
    play.reset()
    yield play
    play.close()


def all_of(play: JavaPlay, actions: tuple[str, ...]) -> list[StepResult]:
    return [play.step(action) for action in actions]


def test_it_keeps_the_contract(tasks: ScienceworldTasks) -> None:
    task = named("lifespan-longest-lived/0")
    check_environment(tasks, task, tasks.gold_path(task)[:4], max_steps=STEPS)


@pytest.mark.parametrize("task_id", ["find-non-living-thing/0", "power-component/0", "use-thermometer/539"])
def test_upstreams_solution_wins(tasks: ScienceworldTasks, task_id: str) -> None:
    play = tasks.make(named(task_id))
    play.reset()
    turns = all_of(play, tasks.gold_path(named(task_id)))
    play.close()
    assert turns[-1][2:] == (True, False, {"success": True})
    assert fsum(turn[1] for turn in turns) == pytest.approx(1)


@pytest.mark.slow
def test_two_processes_play_equally(tasks: ScienceworldTasks) -> None:
    # Of this task, upstream lists three cups, and lets its substance warm up, in another order in every process.
    task = named("use-thermometer/539")
    actions = tasks.gold_path(task)
    transcripts = []
    for _ in range(2):
        other = ScienceworldTasks(engines=1)
        play = other.make(task)
        transcripts.append((play.reset(), all_of(play, actions)))
        other.close()
    assert transcripts[0] == transcripts[1]


def test_the_first_tasks_are_of_all_kinds(tasks: ScienceworldTasks) -> None:
    for split in Split:
        first = tasks.tasks(split, 30)
        assert len({task.kind for task in first}) == 30
        assert all(task.id.startswith(f"{task.kind}/") for task in first)


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Upstream's own Python class, in a Java process of its own."""
    monkeypatch.setenv("PATH", f"{find_java().parent}{os.pathsep}{os.environ['PATH']}")
    environment = upstream_package.ScienceWorldEnv()
    yield environment
    environment.close()


def size(tasks: ScienceworldTasks, split: Split) -> int:
    """How many tasks a split has, as the message about too many says."""
    with pytest.raises(ValueError, match="were asked for") as caught:
        tasks.tasks(split, 1_000_000)
    [number] = re.findall(r"has ([\d,]+) tasks", str(caught.value))
    return int(number.replace(",", ""))


def test_the_splits_are_upstreams(tasks: ScienceworldTasks, upstream: Any) -> None:
    for kind in ("boil", "identify-life-stages-2"):
        upstream.load(kind, 0, "easy")
        of_kind = ScienceworldTasks(kinds=[kind])
        for split, variations in (
            (Split.TRAIN, upstream.get_variations_train()),
            (Split.VALIDATION, upstream.get_variations_dev()),
            (Split.TEST, upstream.get_variations_test()),
        ):
            ours = [task.id for task in of_kind.tasks(split, size(of_kind, split))]
            assert ours == [f"{kind}/{number}" for number in variations]
        of_kind.close()
    assert sum(size(tasks, split) for split in Split) == 7207  # the paper's number of variations


def test_more_tasks_than_there_are(tasks: ScienceworldTasks) -> None:
    with pytest.raises(ValueError, match=r"split validation has [\d,]+ tasks, 1,000,000 were asked for"):
        tasks.tasks(Split.VALIDATION, 1_000_000)


@pytest.mark.parametrize("task_id", ["boil", "boil/", "boil/999", "boil/01", "boil/-1", "boil/²", "fry/0", "/0"])
def test_an_id_that_there_is_not(tasks: ScienceworldTasks, task_id: str) -> None:
    with pytest.raises(UnknownTaskError, match="ids look like boil/12"):
        tasks.make(named(task_id))


@pytest.mark.parametrize("play", ["find-living-thing/0"], indirect=True)
def test_a_fatal_mistake_ends_a_play_with_nothing(play: JavaPlay) -> None:
    observation, reward, *rest = play.step("teleport to kitchen")
    assert observation == "You teleport to the kitchen."
    assert reward > 0
    observation, lost, *rest = play.step("focus on air")
    assert observation == "You focus on the air."
    assert rest == [True, False, {"success": False}]
    assert reward + lost == 0
    assert play.step("reset task") == ("The play is over: nothing changes any more.", 0.0, *rest)


@pytest.mark.parametrize("play", ["find-plant/20"], indirect=True)
def test_the_prompts_example_is_played_as_it_says(play: JavaPlay) -> None:
    assert play.step("teleport to greenhouse")[0] == "You teleport to the greenhouse."
    here = play.step("look around")[0]
    assert here.startswith("This room is called the greenhouse. In it, you see: \n\tthe agent\n")
    assert "(containing a pea plant in the adult stage" in here
    assert play.step("focus on pea plant")[0] == "You focus on the pea plant."
    question = play.step("pick up flower pot")[0].splitlines()
    assert question[0] == (
        "Ambiguous request: Please enter the number for the action you intended (anything else cancels):"
    )
    number = next(line.partition(":")[0] for line in question if "flower pot 8" in line)
    assert play.step(number)[0] == "You move the flower pot 8 to the inventory."
    assert play.step("teleport to bedroom")[0] == "You teleport to the bedroom."
    observation, _, terminated, _, info = play.step("move pea plant to blue box")
    assert observation == "You move the pea plant to the blue box."
    assert terminated
    assert info["success"]
    actor = load_prompts("scienceworld").actor("", (), ())
    for line in (question[0], "You move the flower pot 1 to the inventory.", "You teleport to the bedroom."):
        assert line in actor


@pytest.mark.parametrize("play", ["boil/0"], indirect=True)
def test_a_question_is_answered_by_a_number_or_dropped(play: JavaPlay) -> None:
    assert "0:\topen door between kitchen and hallway" in play.step("open door")[0]
    assert play.step("0")[0] == "The door is already open."
    assert "5:\topen door between art studio and hallway" in play.step("open door")[0]
    dropped = play.step("7")[0]
    assert dropped == "'7' is none of the numbers asked for: nothing was done. Give the whole action again."
    assert play.step("0")[0].startswith("No known action matches '0'.")


@pytest.mark.parametrize("play", ["boil/0"], indirect=True)
@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("", "That is no action."),
        ("fly to the moon", "No known action matches 'fly to the moon'."),
        ("look around\nlook around", r"'look around\nlook around' is not one line of text: give one action at a time."),
        ("\x00", r"'\x00' is not one line of text: give one action at a time."),
        ("z" * 10_000, f"'{'z' * 99}…' is too long for an action."),
    ],
)
def test_what_is_no_action_is_told_what_is(play: JavaPlay, action: str, says: str) -> None:
    observation, reward, terminated, truncated, info = play.step(action)
    assert observation.startswith(f"{says} Allowed: activate/close/")
    assert "focus on" in observation
    assert (reward, terminated, truncated, info) == (0, False, False, {"success": False})


@pytest.mark.parametrize("play", ["boil/0"], indirect=True)
def test_every_step_counts(play: JavaPlay) -> None:
    turns = all_of(play, ("",) * STEPS)
    assert [turn[3] for turn in turns] == [False] * (STEPS - 1) + [True]
    assert play.step("look around")[:2] == ("The play is over: nothing changes any more.", 0.0)


@pytest.mark.slow
def test_the_oracle_tells_upstreams_solution_while_all_engines_play() -> None:
    tasks = ScienceworldTasks(kinds=["find-non-living-thing"], engines=1)
    play = tasks.make(named("find-non-living-thing/0"))
    play.reset()
    told = tasks.oracle(named("find-non-living-thing/0"))
    assert told is not None
    assert all(action in told for action in tasks.gold_path(named("find-non-living-thing/0")))
    play.close()
    tasks.close()


@pytest.mark.slow
def test_a_dead_engine_fails_one_play_and_the_next_one_has_another() -> None:
    before = java_children()
    tasks = ScienceworldTasks(kinds=["boil"], engines=1)
    play = tasks.make(named("boil/0"))
    opening = play.reset()
    for process in java_children() - before:
        process.kill()
    with pytest.raises(EnvironmentFailedError, match=r"scienceworld: its Java process ended \(status -9\)"):
        play.step("look around")
    play.close()
    again = tasks.make(named("boil/0"))
    assert again.reset() == opening
    tasks.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kinds": ["boyl"]}, "kinds: there is no 'boyl'; there are: boil, "),
        ({"kinds": "boil"}, "kinds: .*Sequence"),
        ({"kinds": []}, "kinds: .*at least 1 item"),
        ({"simplification": "easy,hard"}, "simplification: there is no 'hard'; there are: easy, teleportAction"),
        ({"simplification": None}, "simplification: Input should be a valid string"),
        (
            {"simplification": "noElectricalAction"},
            "simplification: power-component cannot be solved with noElectricalAction",
        ),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        ({"engines": True}, "engines: Input should be a valid integer"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"scienceworld: {says}"):
        ScienceworldTasks(**options)


def test_simplifications_reach_the_simulator() -> None:
    tasks = ScienceworldTasks(kinds=["boil"], simplification="openDoors, noElectricalAction")
    play = tasks.make(named("boil/0"))
    opening, _ = play.reset()
    assert "A door to the kitchen (that is open)" in opening
    assert "teleport" not in play.step("teleport to kitchen")[0].partition("Allowed:")[2]
    tasks.close()
