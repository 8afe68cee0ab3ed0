"""Prints a user's mistake as one clear line, with exit code 2; a bug of ours keeps its traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from retro.actors.budget import BudgetExceededError
from retro.envs.base import EnvironmentFailedError
from retro.rollout.processes import WorkersFailedError
from retro.types import ActorError
from retro.wire.failures import QuotaError

USER_ERROR = 2
_STOPPED = (ActorError, EnvironmentFailedError, BudgetExceededError, QuotaError, WorkersFailedError)
"""Errors that end a run without being a mistake of the user's."""
_BUGS = (KeyError, IndexError, UnicodeError)
"""Classes that Python itself raises, though we raise their base classes: they are not messages for a user."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that our code raised for the user into its message and ``SystemExit(2)``.

    With ``RETRO_TRACEBACK=1``, the traceback is shown nevertheless.
    """
    try:
        yield
    except (ValueError, LookupError, OSError, ImportError, *_STOPPED) as error:
        if os.environ.get("RETRO_TRACEBACK") == "1" or not is_for_the_user(error):
            raise
        print(f"retro: {message(error)}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


def is_for_the_user(error: BaseException) -> bool:
    """Whether ``error`` is for the user: its class is ours, it is about a file, or a line of ours raised it."""
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
    """The error's message; for a file that is missing, its name and the reason."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
