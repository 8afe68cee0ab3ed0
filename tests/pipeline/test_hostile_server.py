"""The reduced form of ``benchmarks/hostile_server.py``: some kinds of broken servers, one process."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from benchmarks.hostile_server import KEY, leaks, run
from tests.servers.hostile_answers import FAULTS

PLAYED = (
    *("status-500", "reset", "endless-error", "endless-headers", "gzip-bomb", "json-wide", "usage-63-bits"),
    *("silent-null", "wait-hour-500", "key-escaped", "key-utf-16-error"),
)
MIXED = ("cut-body", "key-escaped")
"""Also at a fifth of the requests."""
STOPPED = ("status-401", "redirect-key", "wait-hour")


def test_no_server_harms_a_collection() -> None:
    outcomes = run(kinds=[*PLAYED, *STOPPED], fractions=[1.0], tasks=2, batch=100)
    outcomes += run(kinds=MIXED, fractions=[0.2], tasks=2, batch=100)
    assert not [(outcome.kind, outcome.fraction, outcome.problems) for outcome in outcomes if outcome.problems]
    everywhere = [outcome for outcome in outcomes if outcome.fraction == 1]
    assert all(outcome.faults for outcome in everywhere)
    assert {outcome.kind for outcome in everywhere if outcome.stopped} == set(STOPPED)


def test_there_are_many_kinds_of_faults() -> None:
    assert len(FAULTS) >= 60
    assert set(PLAYED) | set(STOPPED) <= set(FAULTS)


@pytest.mark.parametrize(
    "spelling",
    [
        KEY,
        KEY.upper(),
        json.dumps(KEY).replace("/", "\\/"),
        json.dumps("".join(f"\\u{ord(letter):04x}" for letter in KEY)),
        quote(KEY, safe=""),
        "".join(f"&#{ord(letter)};" for letter in KEY),
        KEY.encode("utf-16").decode("latin-1"),
        "\\n".join(KEY),
        KEY[:12],
    ],
)
def test_a_leak_is_seen(spelling: str) -> None:
    """The check is not the product's own code: it must find what that is to hide."""
    assert leaks(f"you sent {spelling} and more")
    assert not leaks("you sent *** and more")
