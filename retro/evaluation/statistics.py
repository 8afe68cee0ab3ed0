"""Intervals and paired tests over tasks: pure numpy, every draw seeded.

They resample and flip *tasks*, never episodes: the attempts at one task and the seeds of one arm are not independent of
each other. So they are about new tasks for the given adapters or, with several seeds, for the mean over those seeds'
adapters; they do not include how far another training would be from that mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retro.evaluation.records import Record
from retro.retrospective.samplers.best_of import spent
from retro.ties import EQUAL, sign
from retro.types import Reflection

Floats = NDArray[np.float64]
_CHUNK_CELLS = 8_000_000
"""Random numbers drawn at once: about 64 MB."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one arm reached on one task after each attempt. Neither sequence ever falls."""

    success: tuple[bool, ...]
    """Solved at attempt t or earlier."""
    returns: tuple[float, ...]
    """The best return among attempts 0 … t."""
    tokens: int
    """See :func:`tokens_of`; over all attempts."""


def tokens_of(record: Record) -> int:
    """Every token that an episode cost: the actor's, those of its reflection and of the advice that its actor asked
    for, and those that the reward model read.

    Prompts and completions count alike. A prompt that a group of reflections shares is computed once and counts once:
    for the model that writes them, and again for the reward model that reads all of them. A sampler that asks the
    reward model several times has it read the prompt each time.
    """
    reflection = record.episode.reflection
    written = reflection.usage.total if reflection else 0  # in Best-of-N, of all candidates
    advice = sum(given.reflection.usage.total for given in record.episode.advice)
    return record.episode.usage.total + written + advice + _scored(record.candidates)


def _scored(candidates: Sequence[Reflection]) -> int:
    """The tokens that the reward model read: the first reflection of each of its answers has the index 0."""
    if not candidates:
        return 0
    usage, answers = spent(candidates), sum(candidate.index == 0 for candidate in candidates)
    return usage.total + max(answers - 1, 0) * usage.prompt_tokens


def outcome(chain: Sequence[Record], attempts: int) -> Outcome:
    """The cumulative outcome of the records of one task.

    A chain ends early when the task is solved, when the arm has fewer attempts (``one-shot``), or when an episode was
    too long to be reflected on. What was reached until then also counts for the later attempts.

    Raises:
        ValueError: if there is no episode, or if a trial is outside ``0 … attempts − 1``.
    """
    if not chain:
        raise ValueError("an outcome needs at least one episode")
    solved, best = [False] * attempts, [0.0] * attempts
    for episode in (record.episode for record in chain):
        if not 0 <= episode.trial < attempts:
            raise ValueError(f"episode {episode.id}: trial {episode.trial} is not one of {attempts} attempts")
        solved[episode.trial] |= episode.success
        best[episode.trial] = max(best[episode.trial], episode.return_)
    return Outcome(
        tuple(bool(flag) for flag in np.maximum.accumulate(solved)),
        tuple(float(value) for value in np.maximum.accumulate(best)),
        sum(map(tokens_of, chain)),
    )


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927).

    Raises:
        ValueError: unless ``0 ≤ successes ≤ count`` and ``count ≥ 1``.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"wilson: {successes} successes of {count} is not a proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    low = 0.0 if successes == 0 else centre - half  # exactly 0 and 1 at the edges, whatever the rounding
    high = 1.0 if successes == count else centre + half
    return low, high


def bootstrap_mean(values: ArrayLike, resamples: int, seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-task values ``(T,)``, resampling tasks (Efron 1979).

    Raises:
        ValueError: if there is no task.
    """
    tasks = _vector(values, "bootstrap_mean")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            tasks[rng.integers(tasks.size, size=(rows, tasks.size))].mean(axis=1)
            for rows in chunks(resamples, tasks.size)
        ]
    )  # (resamples,)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def sign_flip(differences: ArrayLike, flips: int, seed: int) -> float:
    """Two-sided p-value of a sign-flip permutation test on paired per-task differences ``(T,)``.

    Under the null hypothesis each difference is as likely as its negative. The +1 correction makes the test valid for
    any number of flips, and p at least 1 / (flips + 1) (Phipson & Smyth 2010).

    Raises:
        ValueError: if there is no task.
    """
    tasks = _vector(differences, "sign_flip")
    moving = tasks[[sign(value) != 0 for value in tasks.tolist()]]  # a zero has no sign to flip
    if moving.size == 0:
        return 1.0
    observed = abs(moving.sum())
    tolerance = EQUAL * float(np.abs(moving).sum())  # ties are ties, whatever the order of summation
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in chunks(flips, moving.size):
        signs = rng.integers(0, 2, size=(rows, moving.size), dtype=np.int8).astype(np.float64) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ moving) >= observed - tolerance))
    return (extreme + 1) / (flips + 1)


def mcnemar_exact(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Two-sided exact McNemar test on the paired outcomes of ONE seed: a binomial test of the discordant pairs.

    Raises:
        ValueError: if the sequences differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"mcnemar_exact: {len(a)} outcomes against {len(b)}: the pairs must be of the same tasks")
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, float(tail / 2 ** (discordant - 1))) if discordant else 1.0


def _vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name}: expected one value a task, got shape {vector.shape}")
    return vector


def chunks(total: int, width: int) -> list[int]:
    """``total`` rows of ``width`` random numbers each, cut into so many rows at once that memory is bounded."""
    size = max(1, _CHUNK_CELLS // width)
    return [min(size, total - start) for start in range(0, total, size)]
