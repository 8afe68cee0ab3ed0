from __future__ import annotations

from statistics import fmean, stdev

import pytest
from buffer_episodes import make_episode
from hypothesis import given
from hypothesis import strategies as st

from retro.buffer import Group, rate
from retro.ratings import DEVIATION_FLOOR

returns = st.floats(0, 1)


def group(parent: float, retries: list[float], controls: list[float]) -> Group:
    root = make_episode("root", parent)
    return Group(
        parent=root,
        retries=tuple(
            make_episode(f"retry-{index}", value, parent=root, text=str(index), index=index)
            for index, value in enumerate(retries)
        ),
        controls=tuple(make_episode(f"control-{index}", value, parent=root) for index, value in enumerate(controls)),
    )


groups = st.builds(group, returns, st.lists(returns, max_size=6), st.lists(returns, max_size=4))


def test_hand_computed() -> None:
    example = group(0.3, [0.6, 0.3, 0.0], [0.3, 0.6])
    assert rate(example, "delta_return") == pytest.approx([0.3, 0.0, -0.3])
    assert rate(example, "over_control") == pytest.approx([0.15, -0.15, -0.45])
    assert rate(example, "group") == pytest.approx([1.0, 0.0, -1.0], rel=1e-5)


def test_rounding_errors_are_no_rating() -> None:
    """Two F1 scores of the logs that are one number: 0.2222222222222222 and 0.22222222222222224."""
    assert rate(group(2 / 9, [0.22222222222222224], []), "delta_return") == [0.0]
    assert rate(group(0.1 + 0.2, [0.3], []), "delta_return") == [0.0]
    assert rate(group(0.0, [0.2, 0.2, 0.1 + 0.1 + 1e-16], []), "group") == [0.0] * 3


@given(groups)
def test_delta_return_is_bounded_and_one_a_retry(example: Group) -> None:
    ratings = rate(example, "delta_return")
    assert len(ratings) == len(example.retries)
    assert all(-1 <= rating <= 1 for rating in ratings)


@given(groups)
def test_over_control_is_delta_return_shifted_by_one_number(example: Group) -> None:
    baseline = fmean(control.return_ for control in example.controls) if example.controls else example.parent.return_
    shift = example.parent.return_ - baseline
    expected = [rating + shift for rating in rate(example, "delta_return")]
    assert rate(example, "over_control") == pytest.approx(expected, abs=1e-8)


@given(returns, st.lists(returns, max_size=6), st.integers(1, 4))
def test_over_control_of_a_deterministic_actor_is_delta_return(parent: float, retries: list[float], count: int) -> None:
    replays = group(parent, retries, [parent] * count)
    none = group(parent, retries, [])
    assert rate(none, "over_control") == rate(none, "delta_return")
    assert rate(replays, "over_control") == pytest.approx(rate(replays, "delta_return"), abs=1e-8)


@given(groups)
def test_group_ratings_have_mean_zero_and_deviation_one(example: Group) -> None:
    ratings = rate(example, "group")
    if len({retry.return_ for retry in example.retries}) < 2 or set(ratings) == {0.0}:
        assert all(rating == 0 for rating in ratings)
    else:
        assert fmean(ratings) == pytest.approx(0, abs=1e-6)
        deviation = stdev(retry.return_ for retry in example.retries)
        assert stdev(ratings) == pytest.approx(deviation / (deviation + DEVIATION_FLOOR), abs=1e-6)


@given(groups)
def test_every_scheme_orders_a_group_alike(example: Group) -> None:
    by_return = [retry.return_ for retry in example.retries]
    for scheme in ("delta_return", "over_control", "group"):
        ratings = rate(example, scheme)
        for i, left in enumerate(by_return):
            for j, right in enumerate(by_return):
                if left > right:
                    assert ratings[i] >= ratings[j]
