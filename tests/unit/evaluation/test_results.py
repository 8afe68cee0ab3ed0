"""Curves, intervals and comparisons of made-up outcomes."""

from __future__ import annotations

import json

import pytest
from made_up_evaluation import described

from retro.artifacts import finite
from retro.evaluation.results import Draws, compare, outcomes_from_json, summarise
from retro.evaluation.statistics import Outcome, wilson
from retro.types import Split, Task

DRAWS = Draws(bootstrap=200, permutations=1_000)


def solved_at(trial: int | None, attempts: int = 2) -> Outcome:
    success = tuple(trial is not None and t >= trial for t in range(attempts))
    return Outcome(success, tuple(1.0 if s else 0.3 for s in success), 100)


TASKS = [Task("household", f"t{i}", Split.TEST, "pick" if i < 2 else "heat") for i in range(4)]
A = {0: {"t0": solved_at(0), "t1": solved_at(1), "t2": solved_at(1), "t3": solved_at(None)}}
B = {0: {"t0": solved_at(0), "t1": solved_at(None), "t2": solved_at(None), "t3": solved_at(None)}}


def test_curves_and_breakdowns_by_hand() -> None:
    results = summarise(
        described(["reflexion", "retry-sampled"]), {"reflexion": A, "retry-sampled": B}, TASKS, 2, DRAWS
    )
    arm = results["arms"]["reflexion"]
    assert arm["success_by_trial"] == [0.25, 0.75]
    assert arm["return_by_trial"] == pytest.approx([(1 + 0.9) / 4, (3 + 0.3) / 4])
    assert arm["ci95"] == [wilson(1, 4), wilson(3, 4)]
    assert arm["tokens_per_task"] == 100
    assert arm["by_kind"]["heat"] == {
        "tasks": 2,
        "success_by_trial": [0.0, 0.5],
        "return_by_trial": pytest.approx([0.3, 0.65]),
    }
    assert list(arm["by_environment"]) == ["household"]
    assert [(c["a"], c["b"], c["trial"], c["test"]) for c in results["comparisons"]] == [
        ("reflexion", "retry-sampled", 1, "sign-flip"),
        ("reflexion", "retry-sampled", 1, "mcnemar-exact"),
    ]
    assert results["comparisons"][0]["difference"] == 0.5
    assert results["comparisons"][1]["p_value"] == 0.5  # two discordant pairs: 2 · ½²
    assert json.loads(json.dumps(finite(results)))["tasks"] == 4


def test_several_seeds_are_one_bootstrap_over_tasks_and_no_mcnemar() -> None:
    both = {"sft": {0: A[0], 1: A[0], 2: B[0]}, "reflexion": {0: B[0], 1: B[0], 2: B[0]}}
    results = summarise(described(both), both, TASKS, 2, DRAWS)
    assert results["arms"]["sft"]["seeds"] == 3
    assert results["arms"]["sft"]["success_by_trial"][1] == pytest.approx((0.75 + 0.75 + 0.25) / 3)
    (only,) = results["comparisons"]
    assert only["test"] == "sign-flip" and only["seeds"] == 3 and only["seeds_agreeing"] == 2


def test_a_difference_of_nothing_has_no_sign_that_a_seed_could_share() -> None:
    (compared, *_) = compare({"grpo": A, "dpo": A}, "grpo", "dpo", 1, DRAWS)
    assert compared["difference"] == 0 and compared["seeds_agreeing"] == 0


def test_pairs_are_compared_on_common_tasks_and_seeds_only() -> None:
    fewer = {0: {"t0": solved_at(0), "t3": solved_at(0)}}
    comparison = compare({"oracle": fewer, "retry-sampled": B}, "oracle", "retry-sampled", 1, DRAWS)[0]
    assert comparison["tasks"] == 2 and comparison["difference"] == 0.5
    assert compare({"a": {0: A[0]}, "b": {1: A[0]}}, "a", "b", 1, DRAWS) == []


def test_seeds_that_played_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="arm sft: seed 1 played other tasks than seed 0"):
        summarise(described(["sft"]), {"sft": {0: A[0], 1: {"t0": solved_at(0)}}}, TASKS, 2, DRAWS)


def test_outcomes_survive_json() -> None:
    results = summarise(described(["sft"]), {"sft": A}, TASKS, 2, DRAWS)
    assert outcomes_from_json(json.loads(json.dumps(results["outcomes"]))) == {"sft": A}


def test_a_difference_that_is_rounding_is_nothing() -> None:
    """By task 0.2, 0.4 and −0.6 over five seeds: their sum is not 0 as floats."""
    wins = {"t0": (1, 0), "t1": (2, 0), "t2": (0, 3)}
    seeds = range(5)
    a = {s: {task: solved_at(1 if s < won else None) for task, (won, _) in wins.items()} for s in seeds}
    b = {s: {task: solved_at(1 if s < lost else None) for task, (_, lost) in wins.items()} for s in seeds}
    (compared,) = compare({"grpo": a, "dpo": b}, "grpo", "dpo", 1, DRAWS)
    assert compared["difference"] == 0 and compared["seeds_agreeing"] == 0
