"""One tolerance for equal returns, ratings and scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.ties import exceeds, highest, minus, sign

AVERAGE = (0.2 + 0.2 + 0.2) / 3


def test_what_differs_by_rounding_is_equal() -> None:
    assert AVERAGE > 0.2  # as floats
    assert minus(AVERAGE, 0.2) == 0.0
    assert not exceeds(AVERAGE, 0.2)
    assert sign(0.1 + 0.2 - 0.3) == 0
    assert highest([0.1, 0.2, AVERAGE, 0.15]) == [1, 2]


def test_what_a_reward_makes_differs() -> None:
    assert minus(0.3, 0.2) == pytest.approx(0.1)
    assert exceeds(0.001, 0.0) and not exceeds(0.0, 0.001)
    assert (sign(0.001), sign(-0.001)) == (1, -1)
    assert highest([0.2, 0.3]) == [1]
    assert highest([]) == []


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_no_two_values_exceed_one_another(left: float, right: float) -> None:
    assert not (exceeds(left, right) and exceeds(right, left))
    assert sign(minus(left, right)) == -sign(minus(right, left))
