"""What can go wrong with a request, whether a retry may help, and the error messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from retro.config import ConfigError
from retro.wire.answers import MalformedAnswerError, WebPageError
from retro.wire.credentials import KEY
from retro.wire.http import http_library
from retro.wire.redaction import shown
from retro.wire.retrying import LONGEST_WAIT_SECONDS, described_wait, retry_after_seconds

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

_UNPAID = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_balance"}
_UNKNOWN_PARAMETER = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}
_PASSING = {408, 409, 425, 429}
"""Statuses below 500 after which a retry may succeed."""
_ASKED_TO_WAIT = {429, 503}
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error"}
_TOO_LONG = re.compile(
    r"context[ _-](length|size|window|limit)|maximum (model |sequence )?length|prompt is too long", re.IGNORECASE
)
"""The words of OpenAI, vLLM, llama.cpp, SGLang and others; only the first two have a code for it."""
_MAX_CHARS = 500


class QuotaError(RuntimeError):
    """The server asks every caller to wait for too long, for example after a daily quota: the run stops."""


class Problem(Enum):
    """What kind of failure it is."""

    NOBODY = auto()
    """No server listens at the URL."""
    NO_ANSWER = auto()
    """A time-out, a broken connection, or an answer beyond the limits of :mod:`retro.wire.http`."""
    MALFORMED = auto()
    """An answer that does not follow the protocol."""
    WEB_PAGE = auto()
    """A web page, and this URL has never answered with anything else."""
    REDIRECT = auto()
    KEY = auto()
    """The key was refused."""
    FORBIDDEN = auto()
    """The key may not be used for this."""
    UNPAID = auto()
    """The account is empty."""
    MODEL = auto()
    """There is no such model, or no such URL."""
    PARAMETER = auto()
    """The server does not know a parameter."""
    TOO_LONG = auto()
    """The prompt does not fit the model."""
    REFUSED = auto()
    """Another mistake in the request."""
    BUSY = auto()
    """An error of the server, or a rate limit."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer. It holds no exception of the SDK's, since those hold the request's headers."""

    problem: Problem
    text: str
    """What happened, with the server's own words if there are any: redacted, on one line."""
    again: bool = False
    """Whether a retry may help."""
    wait_seconds: float | None = None
    """How long the server asks this caller to wait, or with ``for_all`` every caller."""
    for_all: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """The wording of error messages about a server.

    Attributes:
        name: What messages call the server.
        url: What messages call its URL: a config key, or an option.
        prefix: The prefix of the other keys of a ``RequestSection`` in the caller's config.
        timeout: The config key of the time-out, if there is one.
        errors: The exception for each problem; ``ConfigError`` for those that are not listed.
        remedies: What the user can do about each problem.
    """

    name: str
    url: str
    prefix: str = ""
    timeout: str = ""
    errors: Mapping[Problem, type[Exception]] = field(default_factory=dict)
    remedies: Mapping[Problem, str] = field(default_factory=dict)

    def error(self, failure: Failure, more: str = "") -> Exception:
        """The exception to raise; ``more`` follows the text of the failure."""
        parts = filter(None, (failure.text, more, self.remedies.get(failure.problem)))
        return self.errors.get(failure.problem, ConfigError)(f"{self.name}: {'; '.join(parts)}")

    def wait_error(self, failure: Failure, seconds: float) -> Exception:
        """The exception for a wait that is too long: the run stops if it is for every caller, else the call fails."""
        if failure.for_all:
            kept = "what was played is kept: run the same command again then, and it goes on"
            return QuotaError(f"{self.name}: {failure.text}; {described_wait(seconds)}; {kept}")
        return self.error(failure, f"{described_wait(seconds)}, more than {LONGEST_WAIT_SECONDS:.0f} s")


def malformed(error: MalformedAnswerError, words: Words, answered_before: bool) -> Failure:
    """The failure of a malformed answer. A web page before any answer suggests that the URL is wrong."""
    said = shown(str(error), _MAX_CHARS)
    if isinstance(error, WebPageError) and not answered_before:
        text = f"answers, but not with completions: {said}; does the URL ({words.url}) end in /v1?"
        return Failure(Problem.WEB_PAGE, text, again=True)
    return Failure(Problem.MALFORMED, f"answers, but not with completions: {said}", again=True)


def failure_of(error: APIError) -> Failure:
    """The failure behind an exception of the SDK."""
    from openai import APIStatusError

    if isinstance(error, APIStatusError):
        return _of_status(error)
    cause = error.__cause__
    nobody = isinstance(cause, http_library().ConnectError)
    text = f"no answer: {_quoted(error)}" + (f" ({_quoted(cause)})" if cause else "")
    return Failure(Problem.NOBODY if nobody else Problem.NO_ANSWER, text, again=True)


def _of_status(error: APIStatusError) -> Failure:
    status, whole = error.status_code, error.response.text  # the SDK's text has OpenAI's form of errors alone
    said = f"HTTP {status}: {shown(whole, _MAX_CHARS)}"
    codes = {code for code in (error.code, error.type) if isinstance(code, str)}
    if codes & _UNPAID or status == 402:
        return Failure(Problem.UNPAID, f"nothing is left to pay with on the account of the key in {KEY}: {said}")
    if 300 <= status < 400:
        target = shown(error.response.headers.get("location", ""))
        text = f"redirects to {target!r} (HTTP {status}), and redirects are not followed"
        return Failure(Problem.REDIRECT, text)
    if status == 401:
        return Failure(Problem.KEY, f"the key in {KEY} was refused ({said})")
    if status == 403:
        return Failure(Problem.FORBIDDEN, f"the key in {KEY} may not be used for this ({said})")
    if status == 404:
        return Failure(Problem.MODEL, f"no such model or URL ({said})")
    if codes & _TOO_LONG_CODES or (status < 500 and status != 429 and _TOO_LONG.search(whole)):
        return Failure(Problem.TOO_LONG, f"the prompt is too long for the model: {said}")
    if codes & _UNKNOWN_PARAMETER:
        return Failure(Problem.PARAMETER, f"refuses a parameter: {said}")
    passing = status >= 500 or status in _PASSING
    wait = retry_after_seconds(error.response.headers)
    return Failure(Problem.BUSY if passing else Problem.REFUSED, said, passing, wait, status in _ASKED_TO_WAIT)


def _quoted(error: BaseException) -> str:
    return f"{type(error).__name__}: {shown(str(error), _MAX_CHARS)}"
