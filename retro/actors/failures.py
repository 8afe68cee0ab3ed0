"""What goes wrong with a request, in words that name the remedy, and whether asking again may help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retro.actors.answers import MalformedAnswerError, WebPageError
from retro.actors.credentials import KEY
from retro.actors.redaction import shown
from retro.actors.retrying import LONGEST_WAIT_SECONDS, described_wait, retry_after_seconds
from retro.config import ConfigError
from retro.types import ActorError

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

_MISTAKES = {401: f"the key in {KEY} was refused", 403: f"the key in {KEY} may not use it", 404: "no such model or URL"}
"""Statuses that every further call would meet too: the run stops instead of reporting one episode after another."""
_UNPAID = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_balance"}
_UNKNOWN_PARAMETER = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}
_PASSING = {408, 409, 425, 429}
"""Statuses below 500 that another try may not meet."""
_ASKED_TO_WAIT = {429, 503}
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error"}
_TOO_LONG = re.compile(
    r"context[ _-](length|size|window|limit)|maximum (model |sequence )?length|prompt is too long", re.IGNORECASE
)
"""OpenAI, vLLM, llama.cpp, SGLang and others: only the first two have a code for it."""
_MAX_CHARS = 500


class QuotaError(RuntimeError):
    """The server asks every caller to wait for longer than a run waits, as after a daily quota: the run stops."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that was not answered."""

    error: Exception
    """What the caller is told if it is not asked again: an ``ActorError`` (this call) or a ``ConfigError`` (every
    call). Without a context: the library's exceptions hold the request's headers."""
    again: bool = True
    """Whether asking again may help."""
    wait_seconds: float | None = None
    """What the server asks to wait, and with ``for_all`` it asks every caller."""
    for_all: bool = False


class Failures:
    """Tells what went wrong.

    Args:
        name: What messages call the actor.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def malformed(self, error: MalformedAnswerError, answered_before: bool) -> Failure:
        """An answer that is none; where nothing but web pages ever came, the URL is not an API's."""
        if isinstance(error, WebPageError) and not answered_before:
            text = f"answers, but not with completions: {_quoted(error)}; does actor.base_url end in /v1?"
            return Failure(ConfigError(f"{self._name}: {text}"))
        return self._of_call(f"a malformed answer: {_quoted(error)}")

    def of(self, error: APIError) -> Failure:
        """What the SDK raised."""
        from openai import APIStatusError

        if isinstance(error, APIStatusError):
            return self._of_status(error)
        cause = error.__cause__
        return self._of_call(_quoted(error) + (f" ({_quoted(cause)})" if cause else ""))

    def asked_to_wait_too_long(self, failure: Failure, seconds: float) -> ActorError | QuotaError:
        """The server's word is kept up to a limit: the call is given up, and the run if every call has to wait."""
        if failure.for_all:
            return quota_error(str(failure.error), seconds)
        text = f"{failure.error}; {described_wait(seconds)}, more than {LONGEST_WAIT_SECONDS:.0f} s"
        return ActorError(text)

    def _of_status(self, error: APIStatusError) -> Failure:
        status, text = error.status_code, _quoted(error)
        codes = {code for code in (error.code, error.type) if isinstance(code, str)}
        if codes & _UNPAID or status == 402:
            return self._of_run(f"nothing is left to pay with on the account of the key in {KEY}: {text}")
        if 300 <= status < 400:
            return self._of_run(f"{redirection(error)}: set actor.base_url to the address that answers by itself")
        if status in _MISTAKES:
            return self._of_run(f"{_MISTAKES[status]} (HTTP {status})")
        if codes & _TOO_LONG_CODES or (status < 500 and status != 429 and _TOO_LONG.search(str(error))):
            remedy = "set actor.context_tokens and actor.tokenizer, and longer prompts are shortened"
            return self._of_call(f"the prompt is too long for the model: {text}; {remedy}", again=False)
        if codes & _UNKNOWN_PARAMETER:
            remedy = "see actor.limit_parameter, and actor.extra_body, where null leaves a parameter out"
            return self._of_run(f"refuses a parameter: {text}; {remedy}")
        return Failure(
            ActorError(f"{self._name}: {text}"),
            again=status >= 500 or status in _PASSING,
            wait_seconds=retry_after_seconds(error.response.headers),
            for_all=status in _ASKED_TO_WAIT,
        )

    def _of_call(self, text: str, again: bool = True) -> Failure:
        return Failure(ActorError(f"{self._name}: {text}"), again)

    def _of_run(self, text: str) -> Failure:
        return Failure(ConfigError(f"{self._name}: {text}"), again=False)


def quota_error(said: str, seconds: float) -> QuotaError:
    """The server's words, and when to go on."""
    return QuotaError(
        f"{said}; {described_wait(seconds)}; what was played is kept: run the same command again then, and it goes on"
    )


def redirection(error: APIStatusError) -> str:
    """Where an answer of status 3xx points to."""
    target = shown(error.response.headers.get("location", ""))
    return f"redirects to {target!r} (HTTP {error.status_code}), and redirects are not followed"


def _quoted(error: BaseException) -> str:
    """The error's class and words."""
    text = shown(str(error), _MAX_CHARS)
    return text if isinstance(error, MalformedAnswerError) else f"{type(error).__name__}: {text}"
