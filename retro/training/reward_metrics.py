"""How good a reward model is: accuracy within groups, AUC, calibration, each with an interval bootstrapped by task.

Best-of-N and PPO compare reflections on one failed episode, so the accuracy within groups matters most; an AUC over all
reflections also rewards telling easy tasks from hard ones. A classifier's accuracy stands beside that of the more
frequent label, which may be high without any model. Rows of one task are not independent, so intervals resample
tasks, never rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro.ties import exceeds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
BINS = 10


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The reflections on one failed episode, with the reward model's scores and the true ratings."""

    task: str
    environment: str
    scores: tuple[float, ...]
    ratings: tuple[float, ...]


def unequal_pairs(ratings: Sequence[float], threshold: float = 0.0) -> list[tuple[int, int]]:
    """(better, worse) for every two indices whose ratings differ by more than ``threshold``."""
    indices = range(len(ratings))
    return [(i, j) for i in indices for j in indices if exceeds(ratings[i] - ratings[j], threshold)]


def reward_report(
    groups: Sequence[ScoredGroup], loss: str, threshold: float, resamples: int, seed: int
) -> dict[str, Any]:
    """Measure a reward model on ``groups``; returns plain JSON.

    With ``bce``, ``labels`` says how often P(accepted) ≥ ½ is the right label (``accuracy``), how often the more
    frequent label of these reflections is (``majority``, the accuracy of a model that always predicts it), and their
    ``difference``.

    Args:
        loss: for ``bradley_terry``, the calibration is of P(i better than j) = σ(s_i − s_j) over the unequal pairs; for
            ``bce``, of P(accepted) = σ(s) over the reflections.
        threshold: two reflections are a pair if their ratings differ by more than this; a reflection is accepted if
            its rating is higher.
        resamples: the number of bootstrap samples of tasks.
    """
    task_index = {task: index for index, task in enumerate(sorted({group.task for group in groups}))}
    pairs = [(task_index[group.task], gap) for group in groups for gap in _gaps(group, threshold)]
    pair_task = np.array([task for task, _ in pairs], dtype=np.int64)  # (P,)
    gaps = np.array([gap for _, gap in pairs], dtype=np.float64)  # (P,)
    credit = _credit(gaps)  # (P,)
    rows = [(task_index[group.task], *row) for group in groups for row in zip(group.scores, group.ratings, strict=True)]
    tasks = np.array([row[0] for row in rows], dtype=np.int64)  # (N,)
    scores = np.array([row[1] for row in rows], dtype=np.float64)  # (N,)
    accepted = np.array([exceeds(row[2], threshold) for row in rows], dtype=np.float64)  # (N,)
    if loss == "bradley_terry":
        # each pair counts once, from its preferred side, so the probability is in [½, 1]
        probability, outcome, calibration_tasks = _sigmoid(np.abs(gaps)), credit, pair_task
    else:
        probability, outcome, calibration_tasks = _sigmoid(scores), accepted, tasks

    def measured(statistic: Callable[[Floats], float], of: Ints, key: int) -> dict[str, Any]:
        value = statistic(np.ones(len(of)))
        interval = bootstrap_by_task(of, statistic, resamples, seed + key) if np.isfinite(value) else None
        return {"value": value if np.isfinite(value) else None, "ci95": interval}

    report = {
        "tasks": len(task_index),
        "groups": len(groups),
        "reflections": len(rows),
        "pairs": len(pairs),
        "accuracy": measured(lambda weights: weighted_mean(credit, weights), pair_task, 0),
        "auc": measured(lambda weights: weighted_auc(scores, accepted, weights), tasks, 1),
        "ece": measured(lambda weights: calibration_error(probability, outcome, weights), calibration_tasks, 2),
        "reliability": reliability(probability, outcome),
    }
    if loss == "bce":
        right = ((scores >= 0) == accepted).astype(np.float64)  # (N,)
        usual = accepted if 2 * accepted.sum() > len(rows) else 1 - accepted  # (N,) right for the more frequent label
        report["labels"] = {
            "accepted": int(accepted.sum()),
            "accuracy": measured(lambda weights: weighted_mean(right, weights), tasks, 3),
            "majority": measured(lambda weights: weighted_mean(usual, weights), tasks, 4),
            "difference": measured(lambda weights: weighted_mean(right - usual, weights), tasks, 5),
        }
    return report


def within_group_accuracy(groups: Sequence[ScoredGroup], threshold: float = 0.0) -> float:
    """The fraction of unequal pairs whose better reflection has the higher score; ties count ½. NaN without pairs."""
    gaps = np.array([gap for group in groups for gap in _gaps(group, threshold)], dtype=np.float64)
    return weighted_mean(_credit(gaps), np.ones(len(gaps)))


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Σ w v / Σ w; NaN if all weights are 0."""
    total = weights.sum()
    return float((weights * values).sum() / total) if total > 0 else float("nan")


def weighted_auc(scores: Floats, labels: Floats, weights: Floats) -> float:
    """P(score of a positive > score of a negative), ties ½ (Mann and Whitney); NaN if one class has no weight.

    Args:
        scores: (N,)
        labels: (N,) 1 for positive, 0 for negative.
        weights: (N,) how often each row counts.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # where each run of equal scores begins
    if len(starts) == 0:
        return float("nan")
    positive = np.add.reduceat((weights * labels)[order], starts)
    negative = np.add.reduceat((weights * (1 - labels))[order], starts)
    total = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / total) if total > 0 else float("nan")


def calibration_error(probability: Floats, outcome: Floats, weights: Floats, bins: int = BINS) -> float:
    """Expected calibration error over ``bins`` equal bins of [0, 1] (Guo et al. 2017, eq. 3); NaN without rows."""
    bin_of = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gap = np.bincount(bin_of, weights=weights * (probability - outcome), minlength=bins)
    total = weights.sum()
    return float(np.abs(gap).sum() / total) if total > 0 else float("nan")


def reliability(probability: Floats, outcome: Floats, bins: int = BINS) -> list[dict[str, float]]:
    """The reliability diagram: count, mean probability and mean outcome of each bin that is not empty."""
    bin_of = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return [
        {
            "from": index / bins,
            "to": (index + 1) / bins,
            "count": int((bin_of == index).sum()),
            "probability": float(probability[bin_of == index].mean()),
            "outcome": float(outcome[bin_of == index].mean()),
        }
        for index in range(bins)
        if (bin_of == index).any()
    ]


def bootstrap_by_task(tasks: Ints, statistic: Callable[[Floats], float], resamples: int, seed: int) -> list[float]:
    """The 95 % percentile interval of ``statistic`` when tasks are drawn with replacement.

    Args:
        tasks: (N,) the task of each row.
        statistic: a function of row weights (N,), which say how often each row's task was drawn. Draws for which it is
            NaN are left out.
    """
    names, index = np.unique(tasks, return_inverse=True)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)  # (B, tasks)
    values = np.array([statistic(draw[index].astype(np.float64)) for draw in draws])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def _gaps(group: ScoredGroup, threshold: float) -> list[float]:
    pairs = unequal_pairs(group.ratings, threshold)
    return [group.scores[better] - group.scores[worse] for better, worse in pairs]


def _credit(gaps: Floats) -> Floats:
    return (np.sign(gaps) + 1) / 2


def _sigmoid(scores: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(scores / 2))  # does not overflow
