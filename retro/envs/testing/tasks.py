"""The rules of a task set: what it lists, and that tasks are made from their ids."""

from __future__ import annotations

from collections import Counter

from retro.envs.base import TaskSet, UnknownTaskError
from retro.envs.testing.plays import made, require, reset, shown
from retro.types import Split, Task

_MOST_LISTED = 64
_BEYOND = 10**12


def check_taskset(taskset: TaskSet) -> None:
    """Check the members of the protocol."""
    rule = "a task set has the members of retro.envs.base.TaskSet (derive from it)"
    for member in ("name", "blocking", "tasks", "make", "oracle", "close"):
        require(hasattr(taskset, member), rule, f"{type(taskset).__name__} has no {member}")
    require(isinstance(taskset.name, str) and taskset.name != "", "a task set has a name", shown(taskset.name))
    require(isinstance(taskset.blocking, bool), "blocking is True or False", shown(taskset.blocking))


def check_splits(taskset: TaskSet) -> dict[Split, list[Task]]:
    """Check that the listed tasks are unique, disjoint, the same each time, and have an end; return them."""
    listed = {split: _listed(taskset, split) for split in Split}
    require(any(listed.values()), "a task set has tasks", "tasks(split, 1) raised ValueError for every split")
    split_of: dict[tuple[str, str], Split] = {}
    for split, tasks in listed.items():
        for task in tasks:
            other = split_of.setdefault((task.environment, task.id), split)
            require(other is split, "the splits have no task in common", f"{task.id!r} is in {other} and in {split}")
        if tasks:
            _check_order(taskset, split, tasks)
            _check_beyond_the_end(taskset, split)
    return listed


def _listed(taskset: TaskSet, split: Split) -> list[Task]:
    count = _MOST_LISTED
    while count:
        try:
            tasks = taskset.tasks(split, count)
        except ValueError:
            count //= 2
            continue
        _check_listed(taskset, split, count, tasks)
        return tasks
    return []


def _check_listed(taskset: TaskSet, split: Split, count: int, tasks: list[Task]) -> None:
    call = f"tasks({split}, {count})"
    are_tasks = isinstance(tasks, list) and all(isinstance(task, Task) for task in tasks)
    require(are_tasks, "tasks() returns a list of retro.types.Task", f"{call} returned {shown(tasks)}")
    rule = "tasks() returns as many tasks as were asked for, or raises ValueError"
    require(len(tasks) == count, rule, f"{call} returned {len(tasks)}")
    rule = "a task names its environment, its id and the split that it was listed in"
    environments = getattr(taskset, "environments", (taskset.name,))  # a mixture's tasks keep their own names
    for task in tasks:
        named = task.environment in environments and task.split is split and task.id != ""
        require(named, rule, f"{call} of the task set {taskset.name!r} returned {task}")
    (_, task_id), times = Counter((task.environment, task.id) for task in tasks).most_common(1)[0]
    require(times == 1, "the ids of a split's tasks are unique", f"{call} returned {task_id!r} {times} times")


def _check_order(taskset: TaskSet, split: Split, tasks: list[Task]) -> None:
    count = len(tasks)
    again = taskset.tasks(split, count)
    require(again == tasks, "tasks() returns the same tasks each time", f"a second tasks({split}, {count}) differs")
    rule = "tasks(split, count, offset) leaves out the first `offset` tasks of the same order"
    rest = taskset.tasks(split, count - 1, offset=1)
    require(rest == tasks[1:], rule, f"tasks({split}, {count - 1}, offset=1) is not tasks({split}, {count})[1:]")


def _check_beyond_the_end(taskset: TaskSet, split: Split) -> None:
    rule = "tasks() raises ValueError when more tasks are asked for than there are"
    for count, offset in (
        (1, _BEYOND),
        (_BEYOND, 0),
    ):  # in this order, so that a failing task set does not list a trillion tasks
        try:
            tasks = taskset.tasks(split, count, offset)
        except ValueError:
            continue
        raise AssertionError(f"{rule}: tasks({split}, {count}, offset={offset}) returned {len(tasks)}")


def check_unknown(taskset: TaskSet, task: Task) -> None:
    """Check an unknown id."""
    rule = "make() raises UnknownTaskError for an unknown id"
    unknown = Task(task.environment, "no such task", task.split)
    try:
        taskset.make(unknown)
    except UnknownTaskError:
        return
    except Exception as error:
        raise AssertionError(f"{rule}: make() of the id {unknown.id!r} raised {error!r}") from error
    raise AssertionError(f"{rule}: make() of the id {unknown.id!r} returned an environment")


def check_rebuilt(taskset: TaskSet, task: Task, seed: int) -> str:
    """Check that ``task`` can be made from (environment, id) alone; return its opening observation."""
    rule = "(environment, id) alone rebuilds a task"
    elsewhere = next(split for split in Split if split is not task.split)
    bare = Task(task.environment, task.id, elsewhere)
    openings = []
    for known in (task, bare):
        with made(taskset, known) as environment:
            openings.append(reset(environment, seed))
    seen = f"{task.id!r} with another split and no kind opens with {shown(openings[1])} instead of {shown(openings[0])}"
    require(openings[0] == openings[1], rule, seen)
    oracle, bare_oracle = taskset.oracle(task), taskset.oracle(bare)
    is_text = oracle is None or (isinstance(oracle, str) and oracle.strip() != "")
    require(is_text, "oracle() returns a text, or None where it cannot", shown(oracle))
    seen = f"{task.id!r} with another split and no kind has the oracle {shown(bare_oracle)} instead of {shown(oracle)}"
    require(oracle == bare_oracle, rule, seen)
    return openings[0]
