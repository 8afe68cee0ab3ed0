"""What a reflection was worth: pure functions of a group, so that a rating is a query and never a stored column."""

from __future__ import annotations

from statistics import fmean, pstdev

from retro.buffer.store import Group
from retro.config import Rating
from retro.ties import exceeds, minus


def rate(group: Group, scheme: Rating) -> list[float]:
    """The ratings of ``group.retries``, one each and in their order, by the named scheme.

    Raises:
        ValueError: if there is no such scheme.
    """
    match scheme:
        case "delta_return":
            return delta_return(group)
        case "over_control":
            return over_control(group)
        case "group":
            return group_normalised(group)
    raise ValueError(f"rating {scheme!r}: known are delta_return, over_control and group")


def delta_return(group: Group) -> list[float]:
    """``r_i = G(retry_i) − G(parent)``, in [−1, 1]. Retroformer (arXiv 2308.02151), the rating of a reflection."""
    return [minus(retry.return_, group.parent.return_) for retry in group.retries]


def over_control(group: Group) -> list[float]:
    """``r_i = G(retry_i) − (1/m) Σ_j G(control_j)``, in [−1, 1]: what the reflection gave beyond trying again.

    Without controls (m = 0) the parent's return stands for them, so that the rating equals :func:`delta_return`. For a
    deterministic actor that is exact: its control would be a replay of the parent. For one that samples it is not: a
    failed episode is below the actor's mean, so retrying alone gains; collect with ``controls ≥ 1``.
    """
    baseline = fmean(control.return_ for control in group.controls) if group.controls else group.parent.return_
    return [minus(retry.return_, baseline) for retry in group.retries]


def group_normalised(group: Group) -> list[float]:
    """``r_i = (G_i − μ) / σ`` over the group's retries, σ the population's standard deviation (GRPO, arXiv 2402.03300).

    Zero for all where the retries' returns are equal, so also for a group of one: nothing was compared.
    """
    returns = [retry.return_ for retry in group.retries]
    if not returns:
        return []
    mean, deviation = fmean(returns), pstdev(returns)
    return [minus(value, mean) / deviation if exceeds(deviation) else 0.0 for value in returns]
