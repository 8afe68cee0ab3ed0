"""Reads and checks the JSON of an OpenAI-compatible server's answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal

from retro.reading import UnreadableError, encodable, parse_json
from retro.types import Usage
from retro.wire.redaction import redacted, shown
from retro.wire.request import Endpoint, estimated_tokens

MOST_TOKENS = 2**31 - 1
"""The most tokens in one answer's usage: larger sums do not fit a database's integers."""
_LONGEST_TOKEN_CHARS = 128
"""The longest token of any tokenizer in use: 128 spaces."""
_LOOKED_AT = 2**16
"""How many bytes of a malformed answer its message is made from."""


class MalformedAnswerError(ValueError):
    """An answer that does not follow the protocol: the message quotes it."""


class WebPageError(MalformedAnswerError):
    """A web page instead of an answer."""


class Silence(Enum):
    """Why an answer has no text."""

    FILTERED = auto()
    """A content filter acted, or the model refused."""
    TOOL_CALL = auto()
    THOUGHT = auto()
    """The answer ended while the model was thinking."""
    EMPTY = auto()
    """The text was empty, or a stop string came first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One text that the model wrote."""

    text: str
    finish_reason: Literal["stop", "length"]
    silence: Silence | None = None
    """The reason, if the text is empty or blank."""

    def within(self, stop: tuple[str, ...], max_tokens: int) -> Choice:
        """The text before the first stop string, and no longer than ``max_tokens`` can be: some servers ignore stop
        strings or the limit."""
        text, most = cut(self.text, stop), max_tokens * _LONGEST_TOKEN_CHARS
        silence = self.silence or (None if text.strip() else Silence.EMPTY)
        return Choice(text[:most], "length" if len(text) > most else self.finish_reason, silence)


@dataclass(frozen=True, slots=True)
class Answer:
    """The choices of one request: at least one, but some servers give fewer than were asked for."""

    choices: tuple[Choice, ...]
    usage: Usage
    """For the whole request."""
    counted: bool = True
    """Whether the server reported the usage; otherwise it is estimated from the number of bytes."""


def read_answer(content: bytes, endpoint: Endpoint, count: int, prompt_tokens: int) -> Answer:
    """The first ``count`` choices of an answer.

    Args:
        prompt_tokens: An estimate, used where the server does not report the usage.

    Raises:
        MalformedAnswerError: if it is not JSON, or a key of the protocol is missing or has another type.
    """
    try:
        body = parse_json(content, half_surrogates=True)
    except UnreadableError as error:
        if content.lstrip().startswith(b"<"):
            raise WebPageError(f"a web page: {excerpt(content)}") from None
        raise MalformedAnswerError(f"{error}: {excerpt(content)}") from None
    found = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(found, list) or not found:
        raise MalformedAnswerError(f"no choices: {excerpt(content)}")
    choices = tuple(_choice(item, endpoint, content) for item in found[:count])
    usage = _usage(body.get("usage"), content)
    if usage is not None:
        return Answer(choices, usage)
    written = sum(estimated_tokens(choice.text) for choice in choices)
    return Answer(choices, Usage(prompt_tokens, written), counted=False)


def readable(text: str) -> str:
    """``text`` without keys. A question mark replaces half a surrogate pair and the zero character, which JSON allows
    but files and databases cannot hold."""
    return encodable(redacted(text).replace("\0", "?"))


def cut(text: str, stop: tuple[str, ...]) -> str:
    """``text`` before the first of its stop strings: some servers keep them, some do not stop."""
    return text[: min((index for item in stop if (index := text.find(item)) >= 0), default=len(text))]


def excerpt(content: bytes) -> str:
    """The quoted beginning of a malformed answer."""
    return repr(shown(content[:_LOOKED_AT].decode("utf-8", "replace")))


def _choice(choice: Any, endpoint: Endpoint, content: bytes) -> Choice:
    fields = choice if isinstance(choice, dict) else {}
    message = fields.get("message") if endpoint == "chat" else None
    text = _content(message) if endpoint == "chat" else fields.get("text")
    finish_reason = fields.get("finish_reason")
    if not isinstance(text, str) or not isinstance(finish_reason, str | None):
        raise MalformedAnswerError(f"a choice without a text: {excerpt(content)}")
    silence = None if text.strip() else _silence(message, finish_reason)
    return Choice(readable(text), "length" if finish_reason == "length" else "stop", silence)


def _content(message: Any) -> Any:
    """The message's text; empty if the model only thought, refused or called a tool."""
    if not isinstance(message, dict):
        return None
    if message.get("content") is None and ("content" in message or _silence(message, None) is not Silence.EMPTY):
        return ""
    return message.get("content")


def _silence(message: Any, finish_reason: str | None) -> Silence:
    """Why there is no text, judged by the answer's other fields."""
    fields = message if isinstance(message, dict) else {}
    if finish_reason in ("content_filter", "refusal") or fields.get("refusal"):
        return Silence.FILTERED
    if finish_reason in ("tool_calls", "function_call") or fields.get("tool_calls") or fields.get("function_call"):
        return Silence.TOOL_CALL
    if finish_reason == "length" or fields.get("reasoning_content") or fields.get("reasoning"):
        return Silence.THOUGHT
    return Silence.EMPTY


def _usage(usage: Any, content: bytes) -> Usage | None:
    if usage is None:
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else ["?"]
    if not all(count is None or (type(count) is int and 0 <= count <= MOST_TOKENS) for count in counts):
        raise MalformedAnswerError(f"its usage is not two numbers of tokens: {excerpt(content)}")
    return None if None in counts else Usage(*counts)
