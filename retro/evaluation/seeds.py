"""Differences between two methods over several training seeds: intervals, and how many seeds a claim needs.

A test that pools tasks (:mod:`retro.evaluation.statistics`) is about the adapters at hand. A claim about a *method* is
about training again, so the seeds have to vary as well as the tasks. Every function here takes the differences of
success between two arms, (S, T) for S training seeds that were evaluated on the same T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from retro.config import ConfigError
from retro.evaluation.results import Draws, Interval, Outcomes, Results, outcomes_from_json, paired_success
from retro.evaluation.statistics import Floats, Outcome, chunks
from retro.types import derive_seed

MOST_SEEDS = 1_000
"""A claim that would need more seeds than this needs more tasks first."""


class MethodComparison(TypedDict):
    a: str
    b: str
    trial: int
    difference: float
    """Success of ``a`` minus success of ``b``, the mean over seeds and tasks."""
    ci95: Interval
    """See :func:`two_level_interval`."""
    bootstrap_ci95: Interval
    """See :func:`two_level_bootstrap`."""
    by_seed: dict[str, float]
    tasks: int
    seeds_needed: int | None
    """See :func:`seeds_needed`."""


def pool(results: Mapping[str, Results]) -> dict[str, dict[int, dict[str, Outcome]]]:
    """Outcomes by arm, seed and task of several runs, in the first run's order; arms that a run lacks are left out.

    Args:
        results: By the run's name, for messages.

    Raises:
        ConfigError: if two runs have the same training seed, or other attempts.
    """
    by_run = {name: outcomes_from_json(result["outcomes"]) for name, result in results.items()}
    run_of: dict[int, str] = {}
    for name, outcomes in by_run.items():
        for seed in {seed for of_arm in outcomes.values() for seed in of_arm}:
            if seed in run_of:
                raise ConfigError(
                    f"{run_of[seed]} and {name} both have the training seed {seed}; to compare methods, train with "
                    "another seed for each run: retro run CONFIG name=… seed=…"
                )
            run_of[seed] = name
    attempts = {result["attempts"] for result in results.values()}
    if len(attempts) > 1:
        raise ConfigError(f"the runs were evaluated with {sorted(attempts)} attempts; evaluate them with equally many")
    first, *others = by_run.values()
    shared = [arm for arm in first if all(arm in outcomes for outcomes in others)]
    return {arm: {seed: of for outcomes in by_run.values() for seed, of in outcomes[arm].items()} for arm in shared}


def compare_methods(outcomes: Mapping[str, Outcomes], a: str, b: str, trial: int, draws: Draws) -> MethodComparison:
    """Arm ``a`` against arm ``b`` at one trial, on the seeds and tasks that both have.

    Raises:
        ValueError: if they share fewer than two seeds or two tasks.
    """
    seeds, ids, (of_a, of_b) = paired_success(outcomes, a, b, trial)
    differences = _checked(of_a - of_b)
    seed = derive_seed(draws.seed, "two-level", a, b, trial)
    return MethodComparison(
        a=a,
        b=b,
        trial=trial,
        difference=float(differences.mean()),
        ci95=two_level_interval(differences),
        bootstrap_ci95=two_level_bootstrap(differences, draws.bootstrap, seed),
        by_seed={str(seed): float(mean) for seed, mean in zip(seeds, differences.mean(axis=1), strict=True)},
        tasks=len(ids),
        seeds_needed=seeds_needed(differences),
    )


def two_level_bootstrap(differences: ArrayLike, resamples: int, seed: int, confidence: float = 0.95) -> Interval:
    """Percentile interval of the mean: resample seeds, then tasks within each drawn seed (Davison & Hinkley 1997, 3.8).

    With few seeds that differ much it is too narrow, since S seeds drawn from S vary less than S new seeds. ``python
    benchmarks/seed_statistics.py`` measures by how much; :func:`two_level_interval` does not have this fault.

    Raises:
        ValueError: if there are fewer than two seeds or two tasks.
    """
    values = _checked(differences)
    seeds, tasks = values.shape
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[rng.integers(seeds, size=(rows, seeds, 1)), rng.integers(tasks, size=(rows, seeds, tasks))].mean(
                axis=(1, 2)
            )
            for rows in chunks(resamples, values.size)
        ]
    )  # (resamples,)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def two_level_interval(differences: ArrayLike, confidence: float = 0.95) -> Interval:
    """Interval of the mean over new seeds and new tasks: Student's t on variance components.

    The difference of a seed on a task is taken as a mean plus three independent effects: of the seed, of the task, and
    of both together. The mean squares of a two-way analysis of variance estimate their variances, and Satterthwaite's
    formula gives the degrees of freedom (Brennan 2001, *Generalizability Theory*, chapters 3 and 6). The page
    ``docs/results.md`` gives the measured coverage.

    Raises:
        ValueError: if there are fewer than two seeds or two tasks.
    """
    values = _checked(differences)
    mean, half = float(values.mean()), _Components.of(values).half_width(len(values), values.shape[1], confidence)
    return mean - half, mean + half


def seeds_needed(differences: ArrayLike, confidence: float = 0.95) -> int | None:
    """The least number of seeds with which an interval around this mean would exclude 0, on as many tasks.

    With the variances σ²_seed, σ²_task and σ²_both that the data show, the interval of S seeds and T tasks has the half
    width t_ν · √(σ²_seed/S + σ²_task/T + σ²_both/(S·T)), with ν by Satterthwaite's formula. This is the least S ≥ 2 for
    which it is below the absolute difference. It supposes that this difference is the true one; with few seeds it is
    a rough guide.

    Returns:
        None if no number of seeds up to :data:`MOST_SEEDS` is enough: the claim needs more tasks, or is not true.

    Raises:
        ValueError: if there are fewer than two seeds or two tasks.
    """
    values = _checked(differences)
    components, tasks = _Components.of(values), values.shape[1]
    mean = abs(float(values.mean()))
    enough = (seeds for seeds in range(2, MOST_SEEDS + 1) if components.half_width(seeds, tasks, confidence) < mean)
    return next(enough, None)


@dataclass(frozen=True, slots=True)
class _Components:
    """Variances of the effects of seeds, of tasks, and of both together."""

    seed: float
    task: float
    both: float

    @classmethod
    def of(cls, values: Floats) -> _Components:
        """Estimates from (S, T) differences. For tasks, a negative estimate counts as 0.

        For seeds it stays negative: then σ²_seed/S + σ²_both/(S·T), the variance of the seeds' means, is as measured.
        An interval is never narrower than that of S·T independent differences with the variance σ²_both.
        """
        seeds, tasks = values.shape
        by_seed, by_task = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
        both = float(((values - by_seed - by_task + values.mean()) ** 2).sum() / ((seeds - 1) * (tasks - 1)))
        seed = float(by_seed.var(ddof=1)) - both / tasks
        task = float(by_task.var(ddof=1)) - both / seeds
        return cls(seed, max(task, 0.0), both)

    def half_width(self, seeds: int, tasks: int, confidence: float) -> float:
        """Half of the interval's width with ``seeds`` seeds on ``tasks`` tasks."""
        of_seeds = self.seed / seeds + self.both / (seeds * tasks)  # the mean squares, over seeds · tasks
        of_tasks = self.task / tasks + self.both / (seeds * tasks)
        of_both = self.both / (seeds * tasks)
        variance = of_seeds + self.task / tasks
        spread = of_seeds**2 / (seeds - 1)
        if self.task:
            spread += of_tasks**2 / (tasks - 1) + of_both**2 / ((seeds - 1) * (tasks - 1))
        chance = math.sqrt(of_both) * t_quantile(0.5 + confidence / 2, (seeds - 1) * (tasks - 1))
        if variance == 0:
            return chance
        return max(chance, t_quantile(0.5 + confidence / 2, variance**2 / spread) * math.sqrt(variance))


def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t with ``freedom`` > 0 degrees of freedom, for 0.5 ≤ ``probability`` < 1.

    With t = √ν · tan φ, the density becomes proportional to cos^(ν−1) φ, which Gauss's rule integrates; bisection on φ
    finds the quantile to about 10 digits.
    """
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    nodes, weights = _gauss_legendre()
    low, high = 0.0, min(math.pi / 2, 40 / math.sqrt(freedom))
    for _ in range(60):
        angle = (low + high) / 2
        inside = scale * angle / 2 * float(weights @ np.cos(angle * (nodes + 1) / 2) ** (freedom - 1))
        low, high = (angle, high) if inside < probability - 0.5 else (low, angle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


@cache
def _gauss_legendre() -> tuple[Floats, Floats]:
    """Nodes and weights: they take longer to compute than a quantile with them."""
    return np.polynomial.legendre.leggauss(64)


def _checked(differences: ArrayLike) -> Floats:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(
            f"a claim about a method needs at least 2 training seeds and 2 tasks, not differences of shape "
            f"{values.shape}: with one seed, an interval is about one adapter only"
        )
    return values
