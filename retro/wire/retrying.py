"""How long to wait before a retry: growing, jittered pauses, or the time that the server asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from email.utils import mktime_tz, parsedate_tz

from retro.types import derive_seed

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 120.0
"""The longest wait that a server may ask for; after a request for more, the call fails."""
_LONGEST_HEADER = 100
"""In characters, for a ``Retry-After``; a date has 29."""
_LONGEST_DATED_DAYS = 366
_SPREAD = 0.25
"""Callers that were asked to wait for the same time retry spread over a quarter of it more."""


def backoff_seconds(attempt: int, *key: str | int) -> float:
    """The pause after failure ``attempt`` (0, 1, …): uniform between 0 and a bound that doubles, up to 30 s.

    "Full jitter" of Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog 2015. The draw is seeded by
    ``key``, as every draw here is.
    """
    bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 32))
    return bound * _uniform(attempt, *key)


def spread_seconds(requested: float, attempt: int, *key: str | int) -> float:
    """At least the seconds that the server asked for."""
    return requested * (1 + _SPREAD * _uniform(attempt, *key))


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The wait that ``retry-after-ms`` or ``Retry-After`` asks for (seconds or an HTTP date; RFC 9110, section 10.2.3),
    or None."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        seconds = _number(headers.get(name, "")[:_LONGEST_HEADER])
        if seconds is not None:
            return seconds * unit
    date = parsedate_tz(headers.get("retry-after", "")[:_LONGEST_HEADER])
    return None if date is None else max(0.0, _timestamp(date) - time.time())


def described_wait(seconds: float) -> str:
    """A message about the wait that a server asks for: the seconds, and the local time of its end."""
    if seconds > timedelta(days=_LONGEST_DATED_DAYS).total_seconds():
        return "it asks to wait for more than a year"
    end = datetime.now().astimezone() + timedelta(seconds=math.ceil(seconds))
    return f"it asks to wait {seconds:,.0f} s, until {end:%Y-%m-%d %H:%M:%S %Z}"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value >= 0 and not math.isnan(value) else None


def _timestamp(date: tuple[int | None, ...]) -> float:
    try:
        return float(mktime_tz(date))  # type: ignore[arg-type]
    except (OverflowError, ValueError):
        return 0.0


def _uniform(*key: str | int) -> float:
    return derive_seed("retry", *key) / 2**63
