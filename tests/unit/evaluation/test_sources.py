"""Whose reflection the shuffled arm gets: never one's own, of the same kind and trial where there is one."""

from __future__ import annotations

import asyncio

import pytest

from retro.evaluation.sources import NoDonorError, Shuffled, Written
from retro.types import Episode, Reflection, ReflectionRequest, Split, StopReason, Task, Trajectory

TASKS = [Task("household", f"t{i}", Split.TEST, "heat" if i < 5 else "cool" if i < 8 else "look") for i in range(9)]


def failed(task: Task, trial: int, text: str | None = None) -> Episode:
    reflection = Reflection(text, "ppo") if text is not None else None
    return Episode(f"{task.id}/{trial}", task, trial, Trajectory(""), 0.0, False, StopReason.HORIZON, None, reflection)


def full_chain(task: Task, trials: int = 3) -> list[Episode]:
    return [failed(task, 0), *(failed(task, t, f"{task.id} before {t}") for t in range(1, trials))]


ALL = {task.id: full_chain(task) for task in TASKS}


def test_a_derangement_within_kind_and_trial() -> None:
    shuffled = Shuffled(ALL, TASKS, seed=3)
    for kind in ("heat", "cool"):
        of_kind = [task for task in TASKS if task.kind == kind]
        for trial in (1, 2):
            given = [shuffled.donated(task, trial).text for task in of_kind]
            assert sorted(given) == sorted(f"{task.id} before {trial}" for task in of_kind)
            assert all(text != f"{task.id} before {trial}" for text, task in zip(given, of_kind, strict=True))


def test_it_is_seeded() -> None:
    first = [Shuffled(ALL, TASKS, seed=0).donated(task, 1).text for task in TASKS]
    assert first == [Shuffled(ALL, TASKS, seed=0).donated(task, 1).text for task in TASKS]
    assert any(first != [Shuffled(ALL, TASKS, seed).donated(task, 1).text for task in TASKS] for seed in range(1, 5))


def test_an_earlier_trial_serves_where_the_kind_has_no_later_one() -> None:
    donors = {task.id: full_chain(task, 2) for task in TASKS}
    assert Shuffled(donors, TASKS, 0).donated(TASKS[0], 3).text.endswith("before 1")


def test_a_kind_of_one_task_takes_another_kinds_reflection() -> None:
    given = Shuffled(ALL, TASKS, 0).donated(TASKS[8], 1).text
    assert given.endswith("before 1") and not given.startswith("t8")


def test_no_other_reflection_is_an_error_that_says_so() -> None:
    with pytest.raises(NoDonorError, match="reflected on no other task"):
        Shuffled({"t0": full_chain(TASKS[0])}, TASKS, 0).donated(TASKS[0], 1)


def test_reflectors_answer_requests() -> None:
    request = ReflectionRequest(failed(TASKS[0], 0), count=2)
    written = asyncio.run(Written(lambda task: f"about {task.id}", "oracle").reflect(request))
    assert [(r.text, r.source, r.index) for r in written] == [("about t0", "oracle", 0), ("about t0", "oracle", 1)]
    (one, _) = asyncio.run(Shuffled(ALL, TASKS, 0).reflect(request))
    assert one.source == "shuffled"
