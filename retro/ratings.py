"""The value of a retry, as defined for both the buffer's ratings and the policy's rewards.

Returns lie in [0, 1] if the environment allows. The retries of one call are a group: all retry one failed episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from retro.ties import exceeds, minus

DEVIATION_FLOOR = 1e-6
"""Added to a group's deviation before it divides, as in GRPO's published code."""


def delta_return(returns: Sequence[float], parent: float) -> list[float]:
    """``r_i = G_i − G_parent``, in [−1, 1]: Retroformer's rating of a reflection (arXiv 2308.02151).

    Args:
        returns: The returns of the retries.
        parent: The return of the failed episode.
    """
    return [minus(value, parent) for value in returns]


def over_control(returns: Sequence[float], controls: Sequence[float], parent: float) -> list[float]:
    """``r_i = G_i − (1/m) Σ_j G(control_j)``, in [−1, 1]: the gain of the reflection over a plain retry.

    Without controls (m = 0) the parent's return replaces their mean, and the rating equals :func:`delta_return`. That
    is exact for a deterministic actor, whose control would repeat the parent. For an actor that samples, play at least
    one control: a failed episode is below its mean, so that even a plain retry gains.

    Args:
        returns: The returns of the retries.
        controls: The returns of the retries without a reflection.
        parent: The return of the failed episode.
    """
    return delta_return(returns, fmean(controls) if controls else parent)


def group_normalised(returns: Sequence[float]) -> list[float]:
    """``r_i = (G_i − μ) / σ`` within the group (GRPO, arXiv 2402.03300).

    σ divides by n − 1. The paper leaves this open; its authors' code, TRL and PPO's ``advantage: group`` here
    (:func:`retro.rl.advantages.group_normalised`) do so, too.

    All ratings are zero if the returns are equal, also in a group of one.
    """
    if not returns or not exceeds(max(returns) - min(returns)):
        return [0.0] * len(returns)
    mean, deviation = fmean(returns), stdev(returns) + DEVIATION_FLOOR
    return [minus(value, mean) / deviation for value in returns]
