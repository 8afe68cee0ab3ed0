"""What a retry was worth: the definitions that the buffer's ratings and the policy's rewards share.

All are functions of returns, which lie in [0, 1] where the environment allows; the retries are one group, on one failed
episode.
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
        returns: of the retries.
        parent: the return of the failed episode.
    """
    return [minus(value, parent) for value in returns]


def over_control(returns: Sequence[float], controls: Sequence[float], parent: float) -> list[float]:
    """``r_i = G_i − (1/m) Σ_j G(control_j)``, in [−1, 1]: what the reflection gave beyond trying again.

    Without controls (m = 0) the parent's return stands for them, so that the rating equals :func:`delta_return`. For a
    deterministic actor that is exact: its control would be a replay of the parent. For one that samples it is not: a
    failed episode is below the actor's mean, so retrying alone gains; play at least one control.

    Args:
        returns: of the retries.
        controls: returns of the retries without a reflection.
        parent: the return of the failed episode.
    """
    return delta_return(returns, fmean(controls) if controls else parent)


def group_normalised(returns: Sequence[float]) -> list[float]:
    """``r_i = (G_i − μ) / σ`` within the group (GRPO, arXiv 2402.03300).

    σ is over n − 1. The paper does not say which; its authors' code, TRL's and PPO's ``advantage: group`` here
    (:func:`retro.rl.advantages.group_normalised`) divide by n − 1, which is unbiased for groups as small as theirs.

    Zero for all where the returns are equal, so also for a group of one: nothing was compared.
    """
    if not returns or not exceeds(max(returns) - min(returns)):
        return [0.0] * len(returns)
    mean, deviation = fmean(returns), stdev(returns) + DEVIATION_FLOOR
    return [minus(value, mean) / deviation for value in returns]
