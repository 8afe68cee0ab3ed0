"""Samplers at equal tokens: the arithmetic, on made-up tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.samplers import Played, arms, match, success_by_tokens, table
from retro.evaluation.records import Record
from retro.types import Episode, Reflection, Split, StopReason, Task, Trajectory, Usage

TASKS = 200


def played(solved: float, tokens: float, order: int = 0) -> Played:
    """Tasks of which a share is solved by the second attempt, each at ``tokens``; ``order`` says which."""
    later = np.roll((np.arange(TASKS) < round(solved * TASKS)).astype(float), order)
    return Played(
        np.stack([np.zeros(TASKS), later], axis=1), np.stack([np.zeros(TASKS), np.full(TASKS, tokens)], axis=1)
    )


CURVE = [played(0.4, 100), played(0.6, 300), played(0.62, 700)]


@pytest.mark.parametrize(
    ("sampler", "best_of", "verdict", "matched"),
    [
        (played(0.5, 200), 0.5, "tie", True),  # half way between the first two
        (played(0.8, 150), 0.45, "better", True),
        (played(0.4, 400), 0.605, "worse", True),  # a quarter of the way to the last
        (played(0.6, 300), 0.6, "tie", True),
        (played(0.64, 900, order=90), 0.62, "tie", False),
        (played(0.1, 50), 0.4, "worse", False),
    ],
)
def test_a_sampler_is_compared_with_the_curve_at_its_own_tokens(
    sampler: Played, best_of: float, verdict: str, matched: bool
) -> None:
    found = match("refine", sampler, CURVE[::-1], 2, resamples=500)
    assert (found.verdict, found.matched) == (verdict, matched)
    assert found.best_of == pytest.approx(best_of)
    low, high = found.ci95
    assert low <= found.difference <= high and found.difference == pytest.approx(found.success - best_of)


def test_the_interval_is_of_paired_tasks_and_includes_what_their_tokens_vary_by() -> None:
    paired, apart = (match("refine", played(0.6, 300, order), CURVE[1:], 2, resamples=500) for order in (0, 80))
    assert paired.ci95 == (0.0, 0.0)  # it solves the same tasks
    assert apart.ci95[0] < -0.05 and apart.ci95[1] > 0.05 and apart.difference == paired.difference
    uneven = Played(CURVE[1].solved, CURVE[1].tokens * np.linspace(0, 2, TASKS)[:, None])
    low, high = match("refine", uneven, CURVE, 2, resamples=500).ci95
    assert low < 0 < high


def test_tokens_are_those_of_reflections_and_of_the_reward_model_alone() -> None:
    def record(task: str, trial: int, success: bool = False) -> Record:
        candidates = tuple(Reflection("look", "ppo", n, usage=Usage(100, 10), score=float(n)) for n in range(3))
        reflection = Reflection("look", "ppo", usage=Usage(100, 30), score=2.0) if trial else None
        stop = StopReason.SUCCESS if success else StopReason.HORIZON
        of = Task("household", task, Split.TEST)
        episode = Episode(f"{task}{trial}", of, trial, Trajectory("a room"), success, success, stop, None, reflection)
        return Record("arm", "mark", replace(episode, usage=Usage(1_000, 9)), candidates if trial else ())

    arm = Played.of([record("b", 0), record("b", 1), record("b", 2, True), record("a", 0, True)], 3)
    assert arm.solved.tolist() == [[1, 1, 1], [0, 0, 1]]  # task a first
    assert arm.tokens.tolist() == [[0, 0, 0], [0, 260, 520]]  # written 130, read by the reward model 130


def test_what_is_written_names_every_arm_and_verdict() -> None:
    names = [arm["name"] for arm in arms("ppo", [4, 2], ["refine"])]
    assert names == ["first", "best of 2", "best of 4", "refine"]
    of = dict(zip(names, [*CURVE, played(0.8, 900)], strict=True))
    text = table(of, [match("refine", of["refine"], CURVE, 2, resamples=200)], attempts=2)
    assert "| best of 2 | 300 | 60.0 (" in text and "| +20.0 (" in text and "| first | 100 | 40.0 (" in text
    assert "| refine | 2 | 900 | 80.0 | 62.0 | +18.0 (" in text
    assert "better (the curve does not reach its tokens) |" in text
    [axes] = success_by_tokens(of, 2).axes
    assert {note.get_text() for note in axes.texts} == set(names)
