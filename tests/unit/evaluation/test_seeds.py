"""Claims about a method: both levels count, one seed is refused, and the number of seeds follows the formula."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from made_up_evaluation import made_up
from numpy.typing import NDArray

from benchmarks.seed_statistics import false_positives
from retro.artifacts import write_json
from retro.cli.comparing import compare_runs
from retro.config import ConfigError
from retro.evaluation.report import read_results
from retro.evaluation.results import Draws, Results
from retro.evaluation.seeds import (
    compare_methods,
    pool,
    seeds_needed,
    t_quantile,
    two_level_bootstrap,
    two_level_interval,
)
from retro.evaluation.statistics import Outcome

Floats = NDArray[np.float64]


def drawn(seed_means: list[float], tasks: int, noise: float = 0.0, task_sd: float = 0.0, seed: int = 0) -> Floats:
    """Differences (S, T) whose seeds' means are as given where there is no noise."""
    rng = np.random.default_rng(seed)
    shape = (len(seed_means), tasks)
    return np.array(seed_means)[:, None] + rng.normal(0, task_sd, tasks) + rng.normal(0, noise, shape)


@pytest.mark.parametrize("freedom", [1, 1.7, 2, 4.3, 30, 999.5, 1e6])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.9995])
def test_t_quantile_agrees_with_scipy(probability: float, freedom: float) -> None:
    expected = scipy.stats.t.ppf(probability, freedom)
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_seeds_that_alone_differ_give_students_interval_of_their_means() -> None:
    means = [0.02, 0.05, -0.01, 0.04]
    low, high = two_level_interval(drawn(means, tasks=50))
    half = scipy.stats.t.ppf(0.975, 3) * scipy.stats.sem(means)
    assert (low, high) == pytest.approx((0.025 - half, 0.025 + half))


def test_tasks_that_alone_differ_give_students_interval_of_their_means() -> None:
    values = np.repeat(drawn([0.1], tasks=40, task_sd=0.3), 3, axis=0)  # three seeds that agree on every task
    half = scipy.stats.t.ppf(0.975, 39) * scipy.stats.sem(values[0])
    assert two_level_interval(values) == pytest.approx((values.mean() - half, values.mean() + half))


def test_the_bootstrap_resamples_seeds_and_tasks() -> None:
    low, high = two_level_bootstrap(drawn([0.0, 1.0], tasks=10), resamples=4_000, seed=0)
    assert (low, high) == (0.0, 1.0)  # a quarter of the resamples draws one seed twice
    alike = np.repeat(drawn([0.0], tasks=200, task_sd=1.0), 2, axis=0)
    low, high = two_level_bootstrap(alike, resamples=4_000, seed=0)
    # Each drawn seed has a draw of tasks of its own, so two seeds halve the variance.
    assert (high - low) / 2 == pytest.approx(1.96 * alike[0].std() / np.sqrt(2 * 200), rel=0.05)
    assert two_level_bootstrap(alike, 500, seed=1) == two_level_bootstrap(alike, 500, seed=1)


def test_more_seeds_are_needed_where_they_differ_more_and_none_help_where_tasks_do() -> None:
    def half_width(seeds: int) -> float:
        return float(scipy.stats.t.ppf(0.975, seeds - 1)) * float(np.std([0.0, 0.04], ddof=1)) / np.sqrt(seeds)

    needed = seeds_needed(drawn([0.0, 0.04], tasks=20))
    assert needed is not None and half_width(needed) < 0.02 <= half_width(needed - 1)
    few, many = seeds_needed(drawn([0.02, 0.03], tasks=20)), seeds_needed(drawn([-0.05, 0.10], tasks=20))
    assert few is not None and many is not None and few < needed < many
    hopeless = np.repeat(drawn([0.0], tasks=10, task_sd=1.0), 3, axis=0) + 0.001
    assert seeds_needed(hopeless - hopeless.mean() + 0.001) is None
    assert seeds_needed(np.zeros((3, 10))) is None  # there is no difference to claim
    assert seeds_needed(np.ones((3, 10))) == 2


@pytest.mark.parametrize("function", [two_level_interval, seeds_needed, lambda d: two_level_bootstrap(d, 10, 0)])
def test_one_seed_is_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"needs at least 2 training seeds .* about one adapter only"):
        function(np.ones((1, 30)))  # type: ignore[operator]


def test_methods_are_compared_on_the_seeds_and_tasks_that_both_have() -> None:
    def outcomes(solved: str) -> dict[str, Outcome]:
        return {f"task-{n}": Outcome((flag == "1",), (float(flag),), 1) for n, flag in enumerate(solved)}

    a = {0: outcomes("1111"), 1: outcomes("1101"), 2: outcomes("1111")}
    b = {0: outcomes("0011"), 1: outcomes("010")}
    found = compare_methods({"a": a, "b": b}, "a", "b", 0, Draws(bootstrap=200))
    assert found["by_seed"] == pytest.approx({"0": 2 / 3, "1": 1 / 3}) and found["tasks"] == 3
    assert found["difference"] == pytest.approx(0.5)
    low, high = found["ci95"]
    assert low < found["bootstrap_ci95"][0] < 0.5 < found["bootstrap_ci95"][1] < high
    with pytest.raises(ValueError, match="at least 2 training seeds"):
        compare_methods({"a": a, "b": {0: outcomes("0011")}}, "a", "b", 0, Draws(bootstrap=200))


def test_a_pooled_test_finds_differences_between_equal_methods_and_two_levels_do_not() -> None:
    found = false_positives(seeds=5, tasks=100, seed_sd=0.08, simulations=60)
    assert found["pooled over tasks"] > 0.2
    assert found["two-level t"] < 0.15


def runs(folder: Path, count: int, tasks: int = 20) -> list[Path]:
    """Evaluated runs with the seeds 0, 1, …; each with outcomes of its own."""
    pooled, _ = made_up(["retry-sampled", "sft", "ppo-env"], tasks, seeds=count)
    for seed in range(count):
        outcomes = {arm: {str(seed): by_seed[str(seed)]} for arm, by_seed in pooled["outcomes"].items()}
        write_json(folder / f"seed-{seed}" / "evaluation" / "results.json", {**pooled, "outcomes": outcomes})
    return [folder / f"seed-{seed}" for seed in range(count)]


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = runs(tmp_path, 3)
    compare_runs(three, ("ppo-env", "sft"))
    shown = capsys.readouterr().out
    assert "3 training seeds" in shown and "ppo-env" in shown and "retry-sampled" not in shown
    compare_runs(three, None)
    assert "retry-sampled" in capsys.readouterr().out  # every planned pair
    results: dict[str, Results] = {str(run): read_results(run / "evaluation" / "results.json") for run in three}
    assert [(arm, list(by_seed)) for arm, by_seed in pool(results).items()] == [
        (arm, [0, 1, 2]) for arm in ("retry-sampled", "sft", "ppo-env")
    ]


def test_runs_that_say_nothing_about_a_method_are_refused(tmp_path: Path) -> None:
    first, second = runs(tmp_path, 2)
    with pytest.raises(ConfigError, match="at least two runs with different seeds"):
        compare_runs([first], None)
    with pytest.raises(ConfigError, match="both have the training seed 0"):
        compare_runs([first, Path(shutil.copytree(first, tmp_path / "copy"))], None)
    with pytest.raises(ConfigError, match="not every run has the arm 'oracle'"):
        compare_runs([first, second], ("ppo-env", "oracle"))
    path = second / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    write_json(path, {**results, "attempts": 2})
    with pytest.raises(ConfigError, match=r"evaluated with \[2, 4\] attempts"):
        compare_runs([first, second], None)
    others = {
        arm: {"1": {f"other-{task}": o for task, o in by["1"].items()}} for arm, by in results["outcomes"].items()
    }
    write_json(path, {**results, "outcomes": others})
    with pytest.raises(ConfigError, match="evaluate the runs on the same tasks"):
        compare_runs([first, second], None)


def test_seeds_that_agree_by_chance_are_no_certainty() -> None:
    """Two seeds with exactly the same mean, on tasks on which they contradict each other."""
    differences = np.array([[1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0]], dtype=float)
    low, high = two_level_interval(differences)
    both = ((differences - differences.mean(axis=0)) ** 2).sum() / 5  # the seeds' means are equal
    width = 2 * scipy.stats.t.ppf(0.975, 5) * np.sqrt(both / 12)
    assert high - low == pytest.approx(width)
