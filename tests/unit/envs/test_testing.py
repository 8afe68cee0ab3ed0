"""``check_environment``: sound environments pass it, and each broken rule is named."""

from __future__ import annotations

import itertools
import threading
from typing import Any, ClassVar

import pytest
from broken_plays import BROKEN_PLAYS, PaysTwice, Play, SuccessAndGoesOn, Tasks

from examples.extensions.guessing_game import Guessing, GuessingTasks
from retro.envs.base import StepResult, TaskSet
from retro.envs.household import HouseholdTasks
from retro.envs.testing import check_environment
from retro.types import Split, Task, derive_seed

SECRET = 1 + derive_seed("guessing", "train-0") % 100
WINS = ("zzqx", "1", "100", str(SECRET))
LOSES = ("1", "zzqx", "100", "2", "3")


def test_sound_environments_pass() -> None:
    check_environment(HouseholdTasks())
    check_environment(GuessingTasks())
    check_environment(Tasks(), actions=WINS)
    check_environment(Tasks(), task=Task("guessing", "test-5", Split.TEST), actions=["50"], seed=3, max_steps=5)


def test_a_winning_play_of_the_household_passes() -> None:
    tasks = HouseholdTasks()
    task = next(task for task in tasks.tasks(Split.TRAIN, 50) if task.kind == "pick")
    world = tasks.world(task)
    place, target = world.place_of(world.targets[0]), world.targets[0]
    script = (
        *(f"go {place}", f"open {place}", f"take {target} from {place}"),
        *(f"go {world.goal}", f"open {world.goal}", f"put {target} in {world.goal}"),
    )
    check_environment(tasks, task, script)


def test_the_tasks_of_a_mixture_keep_the_names_of_its_environments() -> None:
    class Mixed(OfAnotherName):
        environments = ("geussing",)

    check_environment(Mixed())


@pytest.mark.parametrize(("play", "rule"), BROKEN_PLAYS, ids=[play.__name__ for play, _ in BROKEN_PLAYS])
def test_a_broken_play_is_named(play: type[Any], rule: str) -> None:
    script = WINS if play in (SuccessAndGoesOn, PaysTwice) else LOSES
    with pytest.raises(AssertionError, match=rule):
        check_environment(Tasks(play), actions=script)


def test_another_environment_of_the_task_must_play_equally() -> None:
    class KnowsItsNumber(Play):
        number: ClassVar[Any] = itertools.count()

        def __init__(self, secret: int, horizon: int) -> None:
            super().__init__(secret, horizon)
            self.mine = next(self.number)

        def answer(self, observation: str, score: float) -> StepResult:
            return super().answer(f"{observation} ({self.mine})", score)

    with pytest.raises(AssertionError, match="two plays of a task by the same actions and seed are equal: step 1"):
        check_environment(Tasks(KnowsItsNumber), actions=WINS)


def test_a_blocking_environment_must_not_ask_for_one_thread() -> None:
    class OneThread(Play):
        def reset(self, seed: int | None = None, options: object = None) -> tuple[str, dict[str, bool]]:
            self.thread = threading.get_ident()
            return super().reset(seed)

        def answer(self, observation: str, score: float) -> StepResult:
            return super().answer(observation if threading.get_ident() == self.thread else "Wrong thread.", score)

    tasks = Tasks(OneThread)
    check_environment(tasks, actions=WINS)
    tasks.blocking = True
    with pytest.raises(AssertionError, match=r"whichever thread makes a call: step 1 .*Wrong thread"):
        check_environment(tasks, actions=WINS)


# One broken task set for each rule.


class NoName(Tasks):
    name = ""


class BlockingByNumber(Tasks):
    blocking: Any = 1


class Empty(Tasks):
    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        raise ValueError("there are none")


class Generator(Tasks):
    def tasks(self, split: Split, count: int, offset: int = 0) -> Any:
        return iter(super().tasks(split, count, offset))


class TooFew(Tasks):
    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        return super().tasks(split, min(count, 10), offset)


class OfAnotherName(Tasks):
    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        return [Task("geussing", task.id, split) for task in super().tasks(split, count, offset)]


class Doubled(Tasks):
    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        return [Task(self.name, f"{split}-{number // 2}", split) for number in range(offset, offset + count)]


class Overlapping(Tasks):
    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        return [Task(self.name, task.id, split) for task in super().tasks(Split.TRAIN, count, offset)]


class Shuffled(Tasks):
    number: ClassVar[Any] = itertools.count()

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        return super().tasks(split, count, offset + next(self.number) % 2)


class DeafToOffset(Tasks):
    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        return super().tasks(split, count)


class SlicesBeyondTheEnd(Tasks):
    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        return super().tasks(split, 1000)[offset : offset + count]


class KnowsEveryId(Tasks):
    def make(self, task: Task) -> Guessing:
        return Play(1, 5)


class KeyErrorForAnUnknownId(Tasks):
    def make(self, task: Task) -> Guessing:
        return Play({f"train-{number}": number for number in range(100)}[task.id], 5)


class ReadsTheSplit(Tasks):
    def make(self, task: Task) -> Guessing:
        play = super().make(task)
        play.horizon = 5 if task.split is Split.TRAIN else 3
        return play


class OracleReadsTheSplit(Tasks):
    def oracle(self, task: Task) -> str:
        return f"{super().oracle(task)} ({task.split})"


class EmptyOracle(Tasks):
    def oracle(self, task: Task) -> str:
        return " "


BROKEN_TASK_SETS: list[tuple[type[TaskSet], str]] = [
    (NoName, "a task set has a name"),
    (BlockingByNumber, "blocking is True or False"),
    (Empty, "a task set has tasks"),
    (Generator, "returns a list"),
    (TooFew, "as many tasks as were asked for"),
    (OfAnotherName, "names its environment"),
    (Doubled, "ids of a split's tasks are unique"),
    (Overlapping, "splits have no task in common: 'train-0'"),
    (Shuffled, "the same tasks each time"),
    (DeafToOffset, "leaves out the first `offset` tasks"),
    (SlicesBeyondTheEnd, "raises ValueError when more tasks are asked for than there are"),
    (KnowsEveryId, "UnknownTaskError.* returned an environment"),
    (KeyErrorForAnUnknownId, "UnknownTaskError.* raised KeyError"),
    (ReadsTheSplit, r"\(environment, id\) alone rebuilds a task: .* opens with"),
    (OracleReadsTheSplit, r"\(environment, id\) alone rebuilds a task: .* has the oracle"),
    (EmptyOracle, r"oracle\(\) returns a text"),
]


@pytest.mark.parametrize(("tasks", "rule"), BROKEN_TASK_SETS, ids=[tasks.__name__ for tasks, _ in BROKEN_TASK_SETS])
def test_a_broken_task_set_is_named(tasks: type[TaskSet], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_environment(tasks())


def test_what_is_no_task_set_is_named() -> None:
    class Nothing:
        name = "nothing"

    with pytest.raises(AssertionError, match=r"derive from it.*Nothing has no blocking"):
        check_environment(Nothing())  # type: ignore[arg-type]


def test_every_environment_made_is_closed() -> None:
    open_plays: set[Guessing] = set()

    class Counted(Play):
        def __init__(self, secret: int, horizon: int) -> None:
            super().__init__(secret, horizon)
            open_plays.add(self)

        def close(self) -> None:
            open_plays.discard(self)

    class WithoutOracle(Tasks):
        blocking = True

        def oracle(self, task: Task) -> Any:
            return None

    check_environment(WithoutOracle(Counted), actions=WINS)
    assert not open_plays
