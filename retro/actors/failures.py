"""What goes wrong with a request, in words that name the remedy, and whether asking again may help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retro.actors.answers import MalformedAnswerError, WebPageError
from retro.actors.credentials import KEY
from retro.actors.redaction import redacted
from retro.actors.retrying import LONGEST_WAIT_SECONDS, retry_after_seconds
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
        timeout_seconds: Of one request.
    """

    def __init__(self, name: str, timeout_seconds: float) -> None:
        self._name = name
        self._timeout_seconds = timeout_seconds

    def timed_out(self) -> Failure:
        """No whole answer in time, however slowly it came."""
        return self._of_call(f"no whole answer within {self._timeout_seconds:g} s (actor.timeout_seconds)")

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

    def asked_to_wait_too_long(self, failure: Failure) -> ActorError:
        """The server's word is kept up to a limit."""
        return ActorError(
            f"{failure.error}; it asks to wait {failure.wait_seconds:.0f} s, more than {LONGEST_WAIT_SECONDS:.0f} s"
        )

    def _of_status(self, error: APIStatusError) -> Failure:
        status, codes, text = error.status_code, {str(error.code), str(error.type)}, _quoted(error)
        if codes & _UNPAID or status == 402:
            return self._of_run(f"nothing is left to pay with on the account of the key in {KEY}: {text}")
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


def _quoted(error: BaseException) -> str:
    """The error's class and words; keys go first, as half a key, cut off, would not be found."""
    text = redacted(str(error))
    shown = text[:_MAX_CHARS] + ("…" if len(text) > _MAX_CHARS else "")
    return shown if isinstance(error, MalformedAnswerError) else f"{type(error).__name__}: {shown}"
