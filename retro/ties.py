"""When two returns, ratings or scores are equal: the one tolerance of the project, and the comparisons that use it.

Returns are sums of rewards and F1 scores, ratings are differences of returns, and a rating may be an average of
several. Each of these rounds, so (.2 + .2 + .2) / 3 and .2 are two different floats. All code that compares such
numbers does it here: otherwise rounding makes a pair to learn from, or a difference to test, out of nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

EQUAL = 1e-9
"""Two values closer than this are equal. Returns lie in [0, 1], so this is far above their rounding (about 1e-16 for
each operation), and far below the smallest difference that a reward makes."""


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
    """The indices of the highest value and of all values that are equal to it, in order; none of nothing."""
    top = max(values, default=0.0)
    return [index for index, value in enumerate(values) if not exceeds(top, value)]
