"""Pauses between tries, and what servers ask for."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.wire.retrying import backoff_seconds, retry_after_seconds, spread_seconds


@given(attempt=st.integers(0, 10_000), seed=st.integers(0, 2**63 - 1))
def test_a_pause_is_within_a_bound_that_doubles_up_to_a_cap(attempt: int, seed: int) -> None:
    assert 0 <= backoff_seconds(attempt, seed) < min(30.0, 0.5 * 2.0 ** min(attempt, 100))
    assert backoff_seconds(attempt, seed) == backoff_seconds(attempt, seed)


def test_pauses_fill_their_range_and_differ_by_call() -> None:
    pauses = [backoff_seconds(3, "session", seed) for seed in range(2_000)]
    assert sum(pauses) / len(pauses) == pytest.approx(2.0, rel=0.05)
    assert min(pauses) < 0.05 and max(pauses) > 3.95


@given(asked=st.floats(0, 120), seed=st.integers(0, 100))
def test_a_server_that_asks_gets_at_least_its_time_and_at_most_a_quarter_more(asked: float, seed: int) -> None:
    assert asked <= spread_seconds(asked, 1, seed) <= 1.25 * asked


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "20"}, 0.02),
        ({"retry-after-ms": "20", "retry-after": "7"}, 0.02),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "inf"}, float("inf")),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "after lunch"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 99 Oct 99999999999 07:28:00 GMT"}, 0.0),
    ],
)
def test_what_headers_ask_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_a_date_to_come_is_the_seconds_until_then() -> None:
    asked = retry_after_seconds({"retry-after": formatdate(time.time() + 3600, usegmt=True)})
    assert asked is not None and 3590 < asked <= 3600


@given(st.text(max_size=40))
def test_whatever_stands_there_nothing_breaks(text: str) -> None:
    asked = retry_after_seconds({"retry-after": text})
    assert asked is None or asked >= 0
