"""A user's mistake is one clear line on standard error and exit code 2; a bug of ours keeps its traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from retro.actors.budget import BudgetExceededError
from retro.envs.base import EnvironmentFailedError
from retro.types import ActorError
from retro.wire.failures import QuotaError

USER_ERROR = 2
_STOPPED = (ActorError, EnvironmentFailedError, BudgetExceededError, QuotaError)
"""What ends a run without being a mistake of the user's."""
_BUGS = (KeyError, IndexError, UnicodeError)
"""Subclasses of what we raise by hand that Python raises by itself: never meant for a user when bare."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what our own code raised for the user into its message and ``SystemExit(2)``.

    ``RETRO_TRACEBACK=1`` shows the traceback all the same.
    """
    try:
        yield
    except (ValueError, LookupError, OSError, ImportError, *_STOPPED) as error:
        if os.environ.get("RETRO_TRACEBACK") == "1" or not is_for_the_user(error):
            raise
        print(f"retro: {message(error)}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


def is_for_the_user(error: BaseException) -> bool:
    """Whether ``error`` is a message for the user: of a class of ours, about a file, or raised by a line of ours."""
    if type(error).__module__.startswith("retro."):
        return True
    raised_by_python = type(error) in _BUGS or (isinstance(error, ImportError) and error.name is not None)
    if raised_by_python:
        return False
    if isinstance(error, OSError) and error.filename is not None:
        return True
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__", "")).startswith("retro.")


def message(error: BaseException) -> str:
    """The error's own words; for a file that is not there, its name and why."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
