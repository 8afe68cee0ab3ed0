"""The tolerance within which returns, ratings and scores are equal, and comparisons that use it.

Returns are sums of rewards and F1 scores, ratings are differences of returns, and a rating may be an average of
several. Each of these rounds, so (.2 + .2 + .2) / 3 and .2 are different floats. All code compares such numbers by
these functions; otherwise rounding would make pairs to learn from, or differences to test, out of equal values.
"""

from __future__ import annotations

from collections.abc import Sequence

EQUAL = 1e-9
"""Values that differ by less are equal. Returns lie in [0, 1], so this is far above their rounding errors (about 1e-16
for each operation), and far below the smallest difference between rewards."""


def minus(left: float, right: float) -> float:
    """``left − right``, and exactly 0 where the two are equal."""
    difference = left - right
    return 0.0 if abs(difference) < EQUAL else difference


def exceeds(value: float, threshold: float = 0.0) -> bool:
    """Whether ``value`` is above ``threshold`` by more than rounding."""
    return bool(minus(value, threshold) > 0)


def sign(value: float) -> int:
    """1, 0 or −1: whether ``value`` is above 0, equal to it, or below."""
    return exceeds(value) - exceeds(-value)


def highest(values: Sequence[float]) -> list[int]:
    """The indices of the highest value and of all values that equal it, in order; empty for no values."""
    top = max(values, default=0.0)
    return [index for index, value in enumerate(values) if not exceeds(top, value)]
