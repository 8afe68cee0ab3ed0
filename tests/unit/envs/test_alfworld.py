"""ALFWorld's task set and plays, on rooms that the test makes up, and on the real games where they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.config import ConfigError
from retro.envs import make_taskset
from retro.envs.alfworld import AlfworldTasks
from retro.envs.alfworld.play import Alfworld, engine_command
from retro.envs.base import EnvironmentFailedError, StepResult, UnknownTaskError
from retro.envs.testing import check_environment
from retro.types import Split, Task
from tests.unit.envs.alfworld_rooms import CLEAN_MUG, COOL_MUG, HEAT_POTATO, PUT_PLATE, READ_BOOK, ROOMS, TWO_MUGS, Room

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("textworld") is None, reason="needs pip install 'retro[alfworld]'"
)
MakeTasks = Callable[..., AlfworldTasks]

COOL_OPENING = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, a cabinet 1, a countertop 1, a "
    "diningtable 1, a fridge 1, a microwave 1, and a sinkbasin 1.\nYour task is to: put a cool mug in cabinet."
)


def task_of(room: Room) -> Task:
    return Task("alfworld", f"{room.kind}-made-up/trial_A", Split.TRAIN, room.kind)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One room of each kind, in the official layout."""
    folder = tmp_path_factory.mktemp("rooms")
    for room in ROOMS:
        room.write(folder / task_of(room).id)
    return folder


@pytest.fixture(scope="module")
def make(rooms: Path) -> Iterator[MakeTasks]:
    made: list[AlfworldTasks] = []

    def make(data: Any = None, **options: Any) -> AlfworldTasks:
        made.append(AlfworldTasks(data or str(rooms), workers=1, **options))
        return made[-1]

    yield make
    for tasks in made:
        tasks.close()


@pytest.fixture(scope="module")
def tasks(make: MakeTasks) -> AlfworldTasks:
    return make()


@pytest.fixture(scope="module")
def graded(make: MakeTasks) -> AlfworldTasks:
    return make(graded=True)


@pytest.fixture
def play(tasks: AlfworldTasks) -> Iterator[Alfworld]:
    environment = tasks.make(task_of(COOL_MUG))
    environment.reset()
    yield environment
    environment.close()


def script(tasks: AlfworldTasks, room: Room, actions: tuple[str, ...]) -> list[StepResult]:
    environment = tasks.make(task_of(room))
    try:
        environment.reset()
        return [environment.step(action) for action in actions]
    finally:
        environment.close()


@pytest.mark.parametrize(
    ("action", "command"),
    [
        ("put mug 1 in/on cabinet 2", "move mug 1 to cabinet 2"),
        ("Put mug 1 in cabinet 2.", "move mug 1 to cabinet 2"),
        ("put mug 1 on countertop 1", "move mug 1 to countertop 1"),
        ("put mug 1 onto countertop 1", "move mug 1 to countertop 1"),
        ("put mug 1 into cabinet 2", "move mug 1 to cabinet 2"),
        ("move mug 1 to cabinet 2", "move mug 1 to cabinet 2"),
        ("  GO  to\tfridge 1 ", "go to fridge 1"),
        ("look.", "look"),
        ("put", "put"),
        ("put mug 1", "put mug 1"),
        ("", ""),
    ],
)
def test_actions_in_the_engines_words(action: str, command: str) -> None:
    assert engine_command(action) == command


@given(st.text(max_size=60))
def test_the_engines_words_stay_as_they_are(action: str) -> None:
    command = engine_command(action)
    assert engine_command(command).removesuffix(".") == command.removesuffix(".")


@needs_engine
def test_the_opening_is_the_room_and_the_task(tasks: AlfworldTasks) -> None:
    environment = tasks.make(task_of(COOL_MUG))
    opening, info = environment.reset(seed=3)
    assert opening == COOL_OPENING
    assert info["success"] is False
    assert "go to fridge 1" in info["admissible_commands"]
    assert "help" not in info["admissible_commands"]
    environment.close()


@needs_engine
@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.kind)
def test_the_walkthrough_returns_one(tasks: AlfworldTasks, room: Room) -> None:
    results = script(tasks, room, room.walkthrough)
    assert [result[1] for result in results] == [0.0] * (len(results) - 1) + [1.0]
    assert [result[2] for result in results] == [False] * (len(results) - 1) + [True]
    assert results[-1][4]["success"] is True


@needs_engine
def test_put_and_move_are_the_same(tasks: AlfworldTasks) -> None:
    said = [action.replace("move", "PUT").replace(" to cab", " in/on cab") for action in COOL_MUG.walkthrough]
    said[4] = COOL_MUG.walkthrough[4]
    assert said[-1] == "PUT mug 1 in/on cabinet 1"
    assert script(tasks, COOL_MUG, tuple(said)) == script(tasks, COOL_MUG, COOL_MUG.walkthrough)


@needs_engine
@pytest.mark.parametrize(
    ("action", "says"),
    [
        (
            "fly to the moon",
            "Nothing happens. [fly to the moon] is not possible here and now. Actions are: go to PLACE,",
        ),
        ("take mug 1 from diningtable 1", "Nothing happens. [take mug 1 from diningtable 1] is not possible"),
        ("go to fridge 1\ngo to cabinet 1", "Nothing happens. [go to fridge 1 go to cabinet 1] is not possible"),
        ("", "Nothing happens. There was no action. Actions are: go to PLACE, open PLACE,"),
        ("\x00", "Nothing happens. There was no action. Actions are: "),
        ("look " * 2000, f"Nothing happens. [{'look ' * 19}look…] is not possible here and now. Actions are: "),
    ],
)
def test_an_impossible_action_is_told_what_is_allowed(play: Alfworld, action: str, says: str) -> None:
    observation, reward, terminated, truncated, info = play.step(action)
    assert observation.startswith(says)
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, False, False)
    assert play.step("go to diningtable 1")[0].startswith("You arrive at diningtable 1.")


@needs_engine
def test_every_action_counts_and_the_limit_ends_the_play(make: MakeTasks) -> None:
    environment = make(steps=3).make(task_of(COOL_MUG))
    environment.reset()
    assert environment.horizon == 3
    ends = [environment.step(action)[2:4] for action in ("nonsense", "", "look")]
    assert ends == [(False, False), (False, False), (False, True)]
    over = environment.step("go to fridge 1")
    assert over[:4] == ("The attempt is over.", 0.0, False, True)
    environment.close()


@needs_engine
def test_success_with_the_last_step_is_success(make: MakeTasks) -> None:
    results = script(make(steps=len(COOL_MUG.walkthrough)), COOL_MUG, COOL_MUG.walkthrough)
    assert results[-1][2:4] == (True, False)


@needs_engine
def test_what_is_possible_is_listed_if_asked_for(make: MakeTasks) -> None:
    environment = make(admissible=True).make(task_of(READ_BOOK))
    opening, _ = environment.reset()
    places = "go to bed 1, go to desk 1, go to drawer 1, go to shelf 1, inventory, look"
    assert opening.endswith(f"\nYour task is to: look at book under the desklamp.\nPossible now: {places}.")
    assert environment.step("no")[0] == (
        f"Nothing happens. [no] is not possible here and now.\nPossible now: {places}."
    )
    assert "open drawer 1" in environment.step("go to drawer 1")[0].partition("Possible now: ")[2]
    environment.close()


@needs_engine
@pytest.mark.parametrize(
    ("room", "actions", "rewards"),
    [
        (PUT_PLATE, None, [0, 0, 1 / 2, 0, 1 / 2]),
        (HEAT_POTATO, None, [0, 1 / 3, 0, 1 / 3, 0, 1 / 3]),
        (CLEAN_MUG, None, [0, 1 / 3, 1 / 3, 0, 1 / 3]),
        (TWO_MUGS, None, [0, 1 / 4, 0, 1 / 4, 0, 1 / 4, 0, 1 / 4]),
        (READ_BOOK, None, [0, 0, 1 / 3, 0, 2 / 3]),
        (READ_BOOK, ("go to desk 1", "use desklamp 1", "use desklamp 1", "go to drawer 1"), [0, 1 / 3, 0, 0]),
        (  # the wrong mug first is as good; taking again is worth nothing; a thing of another kind neither
            COOL_MUG,
            (
                *("go to sinkbasin 1", "take mug 2 from sinkbasin 1", "move mug 2 to sinkbasin 1"),
                *("take mug 2 from sinkbasin 1", "move mug 2 to sinkbasin 1", "go to countertop 1"),
                *("take knife 1 from countertop 1", "go to fridge 1", "cool knife 1 with fridge 1"),
            ),
            [0, 1 / 3, 0, 0, 0, 0, 0, 0, 0],
        ),
    ],
)
def test_milestones_are_worth_equal_parts(
    graded: AlfworldTasks, room: Room, actions: tuple[str, ...] | None, rewards: list[float]
) -> None:
    results = script(graded, room, actions or room.walkthrough)
    assert [result[1] for result in results] == pytest.approx(rewards)
    assert results[-1][4]["success"] is (actions is None)


@needs_engine
def test_a_milestone_that_holds_from_the_start_is_worth_nothing(make: MakeTasks, tmp_path: Path) -> None:
    places = {"countertop 1": ("mug 1",), "diningtable 1": ("mug 2",), "shelf 1": ()}
    room = Room(TWO_MUGS.kind, TWO_MUGS.task, "mug", "countertop", places, ())
    room.write(tmp_path / task_of(room).id)
    actions = (
        "go to diningtable 1",
        "take mug 2 from diningtable 1",
        "go to countertop 1",
        "put mug 2 on countertop 1",
    )
    results = script(make(str(tmp_path), graded=True), room, actions)
    assert [result[1] for result in results] == pytest.approx([0, 1 / 2, 0, 1 / 2])  # held, and second held, at once
    assert results[-1][4]["success"] is True


@needs_engine
def test_a_snapshot_is_the_actions_so_far(tasks: AlfworldTasks, play: Alfworld) -> None:
    for action in ("go to fridge 1", "nonsense " * 100, "open fridge 1"):
        play.step(action)
    state = play.snapshot()
    assert state == {"actions": ["go to fridge 1", "", "open fridge 1"]}
    assert play.step("close fridge 1")[0] == "You close the fridge 1."
    other = tasks.make(task_of(COOL_MUG))
    other.restore(state)
    assert other.snapshot() == state
    assert other.step("open fridge 1")[0].startswith("Nothing happens.")
    assert other.step("close fridge 1")[0] == "You close the fridge 1."
    other.close()


@needs_engine
@pytest.mark.parametrize("room", [HEAT_POTATO, READ_BOOK], ids=lambda room: room.kind)
def test_it_keeps_the_contract(tasks: AlfworldTasks, room: Room) -> None:
    check_environment(tasks, task_of(room), room.walkthrough)


@needs_engine
def test_it_keeps_the_contract_graded_and_listed(make: MakeTasks) -> None:
    tasks = make(graded=True, admissible=True, steps=12, games_per_worker=10)
    check_environment(tasks, task_of(TWO_MUGS), TWO_MUGS.walkthrough)


@needs_engine
def test_the_oracle_tells_the_walkthrough(tasks: AlfworldTasks, make: MakeTasks, tmp_path: Path) -> None:
    assert tasks.oracle(task_of(READ_BOOK)) == (
        "These actions solve the task, in this order: go to drawer 1; open drawer 1; take book 1 from drawer 1; go to "
        "desk 1; use desklamp 1."
    )
    READ_BOOK.write(tmp_path / task_of(READ_BOOK).id, walkthrough=None)
    assert make(str(tmp_path)).oracle(task_of(READ_BOOK)) is None


@needs_engine
def test_splits_that_name_one_source_share_it(tasks: AlfworldTasks, rooms: Path, make: MakeTasks) -> None:
    listed: dict[Split, list[Task]] = {}
    for split in Split:
        with pytest.raises(ValueError, match=rf"split {split} has (\d) tasks, 7 were asked for") as error:
            tasks.tasks(split, 7)
        listed[split] = tasks.tasks(split, int(str(error.value).split(" has ")[1][0]))
    assert sorted(task.id for some in listed.values() for task in some) == sorted(task_of(room).id for room in ROOMS)
    assert all(task.id.startswith(task.kind) for some in listed.values() for task in some)
    alone = make({"test": str(rooms)}).tasks(Split.TEST, 6)
    assert sorted(task.id for task in alone) == sorted(task_of(room).id for room in ROOMS)
    for some in listed.values():
        ids = [task.id for task in some]
        assert ids == [task.id for task in alone if task.id in ids]
    assert make({"test": str(rooms)}).tasks(Split.TEST, 2, offset=3) == alone[3:5]


@needs_engine
def test_the_first_tasks_are_of_several_kinds(tmp_path: Path, make: MakeTasks) -> None:
    for trial in range(5):
        for room in (READ_BOOK, TWO_MUGS):
            room.write(tmp_path / task_of(room).id.replace("trial_A", f"trial_{trial}"))
    tasks = make({"test": str(tmp_path)}).tasks(Split.TEST, 10)
    assert len({task.kind for task in tasks[:5]}) == len({task.kind for task in tasks[5:]}) == 2


@needs_engine
def test_rooms_divide_the_tasks_and_a_split_that_is_not_named_has_the_other_rooms(
    make: MakeTasks, tmp_path: Path
) -> None:
    names = [f"put-Plate-{trial}-{room}" for room in (1, 12, 301) for trial in ("a", "b")]
    for name in names:
        PUT_PLATE.write(tmp_path / name / "trial_A")
    divided = make(str(tmp_path), rooms={"validation": [12], "test": [301, 7]})
    found = {
        split: [task.id.partition("/")[0] for task in divided.tasks(split, divided.count(split))] for split in Split
    }
    assert found == {Split.TRAIN: names[:2], Split.VALIDATION: names[2:4], Split.TEST: names[4:]}
    with pytest.raises(ValueError, match="split test has 2 tasks, 3 were asked for"):
        divided.tasks(Split.TEST, 3)


@needs_engine
def test_a_task_without_a_room_is_named_where_rooms_divide(make: MakeTasks) -> None:
    with pytest.raises(ValueError, match=r"the name of task '.*made-up/trial_A' does not end with the number"):
        make(rooms={"test": [1]}).tasks(Split.TEST, 1)


@needs_engine
def test_the_releases_folders_are_the_splits(make: MakeTasks, tmp_path: Path) -> None:
    for folder, room in {"train": COOL_MUG, "valid_seen": READ_BOOK, "valid_unseen": PUT_PLATE}.items():
        room.write(tmp_path / folder / task_of(room).id)
    release = make(str(tmp_path))
    kinds = [release.tasks(split, 1)[0].kind for split in Split]
    assert kinds == [COOL_MUG.kind, READ_BOOK.kind, PUT_PLATE.kind]
    environment = release.make(Task("alfworld", task_of(READ_BOOK).id, Split.TEST))  # the id alone says which game
    assert environment.reset()[0].endswith(READ_BOOK.task)
    environment.close()


@needs_engine
def test_a_split_without_a_source_is_said(make: MakeTasks, rooms: Path) -> None:
    with pytest.raises(ValueError, match="data names no source for split test; it does for train"):
        make({"train": str(rooms)}).tasks(Split.TEST, 1)


@needs_engine
@pytest.mark.parametrize("id", ["no such game", "a/b", "../../etc/passwd", ""])
def test_an_unknown_game_is_said(tasks: AlfworldTasks, id: str) -> None:
    with pytest.raises(UnknownTaskError, match="ids look like TASK/TRIAL"):
        tasks.make(Task("alfworld", id, Split.TRAIN))


@needs_engine
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": "nowhere"}, "there is no nowhere; the official games come by `alfworld-download`"),
        ({"data": {"dev": "nowhere"}}, "'dev' is not a split"),
        ({"data": 3}, "data: name a file or a folder, or one for each of train, validation and test, not 3"),
        ({"data": {}}, "data: name a file or a folder"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"workers": -1}, "workers: Input should be greater than 0"),
        ({"workers": 0}, "workers: Input should be greater than 0"),
        ({"games_per_worker": 1.5}, "games_per_worker: Input should be a valid integer"),
        ({"admissible": "yes"}, "admissible: Input should be a valid boolean"),
        ({"graded": 1}, "graded: Input should be a valid boolean"),
        ({"rooms": [1]}, "rooms: Input should be a valid (dictionary|mapping)"),
        ({"rooms": {"test": ["1"]}}, r"rooms\.test\.0: Input should be a valid integer"),
        ({"rooms": {"dev": [1]}}, "Input should be 'train', 'validation' or 'test'"),
        ({"rooms": {"test": [1, 2], "validation": [2]}}, "rooms: room 2 is in two splits"),
        ({"step": 3}, "step"),
    ],
)
def test_a_wrong_option_is_named(rooms: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"environment\.options of alfworld: .*{says}"):
        make_taskset("alfworld", {"data": str(rooms), **options})


@needs_engine
def test_without_data_the_downloaded_games_are_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"there is no {tmp_path}/json_2\.1\.1; .*alfworld-download"):
        AlfworldTasks()
    READ_BOOK.write(tmp_path / "json_2.1.1" / "train" / task_of(READ_BOOK).id)
    assert AlfworldTasks().tasks(Split.TRAIN, 1)[0].id == task_of(READ_BOOK).id


@needs_engine
def test_a_broken_game_fails_the_play_by_name(make: MakeTasks, tmp_path: Path) -> None:
    READ_BOOK.write(tmp_path / task_of(READ_BOOK).id)
    tasks = make(str(tmp_path))
    environment = tasks.make(task_of(READ_BOOK))
    (tmp_path / task_of(READ_BOOK).id / "game.tw-pddl").write_text("{")
    with pytest.raises(EnvironmentFailedError, match=r"trial_A/game\.tw-pddl: not JSON"):
        environment.reset()
    environment.close()


@needs_engine
@pytest.mark.slow
def test_every_walkthrough_of_valid_seen_succeeds(shared_data: Path) -> None:
    tasks = AlfworldTasks({"test": str(shared_data / "alfworld" / "valid_seen.parquet")}, graded=True)

    def returns(task: Task) -> tuple[float, bool]:
        environment = tasks.make(task)
        try:
            environment.reset()
            plan = str(tasks.oracle(task)).partition(": ")[2].removesuffix(".").split("; ")
            results = [environment.step(action) for action in plan]
            return sum(result[1] for result in results), bool(results[-1][4]["success"])
        finally:
            environment.close()

    try:
        with ThreadPoolExecutor(4) as threads:
            ends = list(threads.map(returns, tasks.tasks(Split.TEST, 140)))
    finally:
        tasks.close()
    assert [success for _, success in ends] == [True] * 140
    assert [reward for reward, _ in ends] == pytest.approx([1.0] * 140)
