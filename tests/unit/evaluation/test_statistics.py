"""Intervals and tests against hand-computed cases, properties and scipy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from retro.evaluation.records import Record
from retro.evaluation.statistics import bootstrap_mean, mcnemar_exact, outcome, sign_flip, tokens_of, wilson
from retro.types import Episode, Reflection, Split, StopReason, Task, Trajectory, Usage

TASK = Task("household", "test-1", Split.TEST, "pick")


def episode(trial: int, return_: float, success: bool = False, reflection_tokens: int | None = None) -> Record:
    reflection = None
    if reflection_tokens is not None:
        reflection = Reflection("look in the fridge", "base", usage=Usage(reflection_tokens, 0))
    stop = StopReason.SUCCESS if success else StopReason.HORIZON
    trajectory, usage = Trajectory("a room"), Usage(10, 5)
    played = Episode(f"e{trial}", TASK, trial, trajectory, return_, success, stop, reflection=reflection, usage=usage)
    return Record("arm", "digest", played)


def test_outcome_is_cumulative_and_carried_on_after_success() -> None:
    result = outcome([episode(0, 0.6), episode(1, 0.3, reflection_tokens=7), episode(2, 1.0, True, 7)], attempts=4)
    assert result.success == (False, False, True, True)
    assert result.returns == (0.6, 0.6, 1.0, 1.0)
    assert result.tokens == 3 * 15 + 2 * 7


def test_tokens_are_those_of_the_actor_of_every_candidate_and_of_what_scored_them() -> None:
    candidates = tuple(Reflection("look", "base", i, usage=Usage(100, 10 + i), score=float(i)) for i in range(3))
    chosen = replace(
        candidates[2], usage=Usage(100, 10 + 11 + 12)
    )  # as Best-of-N counts it: one prompt, all that it drew
    first = episode(0, 0.0)
    retry = replace(first, episode=replace(episode(1, 1.0, True).episode, reflection=chosen), candidates=candidates)
    actor, written, read = 10 + 5, 100 + 33, 100 + 33
    assert tokens_of(first) == actor
    assert tokens_of(retry) == actor + written + read
    assert outcome([first, retry], attempts=2).tokens == 2 * actor + written + read
    advice = [{"step": 2, "reflection": {"text": "look", "source": "base", "usage": {"prompt_tokens": 40}}}]
    assert tokens_of(replace(first, episode=replace(first.episode, info={"advice": advice}))) == actor + 40
    again = replace(retry, candidates=(*candidates, *candidates))  # as a walk does that has two groups scored
    assert tokens_of(again) == actor + written + 2 * read


def test_outcome_of_a_single_attempt_is_flat() -> None:
    result = outcome([episode(0, 0.3)], attempts=4)
    assert result.success == (False,) * 4
    assert result.returns == (0.3,) * 4


def test_outcome_refuses_what_it_cannot_place() -> None:
    with pytest.raises(ValueError, match="at least one episode"):
        outcome([], attempts=2)
    with pytest.raises(ValueError, match="trial 2 is not one of 2 attempts"):
        outcome([episode(2, 0.0)], attempts=2)


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (1, 1), (37, 200), (100, 134)])
def test_wilson_agrees_with_scipy(successes: int, count: int) -> None:
    expected = scipy.stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    # p = .5, n = 4, z = 1.96: centre .5, half = z / (1 + z²/n) · sqrt(.25/4 + z²/64) = .34996
    assert wilson(2, 4) == pytest.approx((0.15004, 0.84996), abs=1e-4)


def test_wilson_refuses_no_tasks() -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(0, 0)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).beta(2, 5, size=150)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    low, high = bootstrap_mean(values, resamples=20_000, seed=2)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1.5e-3)


def test_bootstrap_of_two_tasks_by_hand() -> None:
    # Means of {0, 1} resampled twice: 0, ½, ½, 1 with a quarter each; the 2.5 % and 97.5 % quantiles are 0 and 1.
    assert bootstrap_mean([0.0, 1.0], resamples=2_000, seed=0) == (0.0, 1.0)


def test_bootstrap_is_seeded_and_needs_tasks() -> None:
    values = [0.0, 0.3, 0.6, 1.0]
    assert bootstrap_mean(values, 500, seed=3) == bootstrap_mean(values, 500, seed=3)
    with pytest.raises(ValueError, match="one value a task"):
        bootstrap_mean([], 10, seed=0)


def exact_sign_flip(differences: list[float]) -> float:
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


def test_sign_flip_by_hand() -> None:
    # Five equal gains: only the two all-alike sign patterns of 32 are as extreme.
    assert exact_sign_flip([0.2] * 5) == 2 / 32
    assert sign_flip([0.2] * 5, flips=100_000, seed=0) == pytest.approx(2 / 32, abs=4e-3)


@given(st.lists(st.sampled_from([-1.0, -0.4, 0.0, 0.2, 0.6, 1.0]), min_size=1, max_size=9))
def test_sign_flip_agrees_with_full_enumeration(differences: list[float]) -> None:
    assert sign_flip(differences, flips=20_000, seed=1) == pytest.approx(exact_sign_flip(differences), abs=0.02)


def test_sign_flip_agrees_with_scipy_and_never_reaches_zero() -> None:
    differences = np.random.default_rng(4).normal(0.15, 1.0, size=60)
    expected = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=50_000, rng=5
    ).pvalue
    assert sign_flip(differences, flips=100_000, seed=6) == pytest.approx(expected, abs=0.01)
    assert sign_flip(np.ones(200), flips=1_000, seed=0) == 1 / 1_001
    assert sign_flip(np.zeros(10), flips=1_000, seed=0) == 1.0


def test_sign_flip_is_symmetric() -> None:
    differences = np.array([0.4, -0.2, 0.6, 0.2, 0.0])
    assert sign_flip(differences, 5_000, seed=0) == sign_flip(-differences, 5_000, seed=0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_agrees_with_scipys_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    only_a, only_b = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar_exact(a, b) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_by_hand_and_its_error() -> None:
    # Six discordant pairs, all in favour of a: 2 / 2⁶.
    assert mcnemar_exact([True] * 6 + [False], [False] * 7) == 2 / 64
    with pytest.raises(ValueError, match="same tasks"):
        mcnemar_exact([True], [])


def test_differences_that_are_rounding_have_no_sign_to_flip() -> None:
    assert sign_flip([0.1 + 0.2 - 0.3] * 6, flips=1_000, seed=0) == 1.0
