"""How often three 95 % intervals call two equal methods different: pooled, two-level bootstrap, two-level t.

    python benchmarks/seed_statistics.py            # about ten minutes on one core

It simulates two methods whose trainings are equally good on average. Each training is better or worse by chance (the
standard deviation between seeds), tasks differ in how hard they are, and each task suits one of the methods a little
more. A method should be called better or worse in 5 % of the simulations.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from retro.evaluation.results import Interval
from retro.evaluation.seeds import two_level_bootstrap, two_level_interval
from retro.evaluation.statistics import Floats, bootstrap_mean

METHODS = ("pooled over tasks", "two-level bootstrap", "two-level t")
RESAMPLES = 1_000


def simulated(rng: np.random.Generator, seeds: int, tasks: int, seed_sd: float) -> Floats:
    """Differences of success (S, T) between two methods that are equally good on average.

    Args:
        seed_sd: Standard deviation between seeds of the difference, in success.
    """
    hardness, taste = rng.normal(1.4, 1.5, tasks), rng.normal(0, 0.5, (2, 1, tasks))  # log odds
    slope = float(np.mean(_share(hardness) * (1 - _share(hardness))))  # of success by log odds, on average
    luck = rng.normal(0, seed_sd / math.sqrt(2) / slope, (2, seeds, 1))
    solved = rng.random((2, seeds, tasks)) < _share(hardness + taste + luck)
    return solved[0].astype(np.float64) - solved[1]


def _share(log_odds: Floats) -> Floats:
    share: Floats = 1 / (1 + np.exp(-log_odds))
    return share


def false_positives(seeds: int, tasks: int, seed_sd: float, simulations: int, seed: int = 0) -> dict[str, float]:
    """The share of simulations in which each method's 95 % interval leaves out 0."""
    rng = np.random.default_rng([seed, seeds, tasks, round(1e4 * seed_sd)])
    wrong = dict.fromkeys(METHODS, 0)
    for simulation in range(simulations):
        differences = simulated(rng, seeds, tasks, seed_sd)
        intervals: tuple[Interval, ...] = (
            bootstrap_mean(differences.mean(axis=0), RESAMPLES, simulation),
            two_level_bootstrap(differences, RESAMPLES, simulation),
            two_level_interval(differences),
        )
        for method, (low, high) in zip(METHODS, intervals, strict=True):
            wrong[method] += not low <= 0 <= high
    return {method: count / simulations for method, count in wrong.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 8])
    parser.add_argument("--sd", type=float, nargs="+", default=[0.0, 2.0, 4.0], help="between seeds, in points")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--simulations", type=int, default=1_000)
    arguments = parser.parse_args()
    print(f"| sd between seeds, points | seeds | {' | '.join(METHODS)} |\n|---|---|---|---|---|")
    for sd in arguments.sd:
        for seeds in arguments.seeds:
            found = false_positives(seeds, arguments.tasks, sd / 100, arguments.simulations)
            print(f"| {sd:g} | {seeds} | {' | '.join(f'{share:.3f}' for share in found.values())} |", flush=True)


if __name__ == "__main__":
    main()
