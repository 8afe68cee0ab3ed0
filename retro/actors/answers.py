"""The JSON that an OpenAI-compatible server answers with, checked and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from retro.actors.redaction import redacted, shown
from retro.actors.silence import Silence
from retro.reading import UnreadableError, parse_json
from retro.types import Usage

MOST_TOKENS = 2**31 - 1
"""Of one answer's usage: sums of more do not fit a database's integers."""
_LONGEST_TOKEN_CHARS = 128
"""Of any tokenizer in use: 128 spaces."""
_LOOKED_AT = 2**16
"""Bytes of a malformed answer that are looked at for its message."""


class MalformedAnswerError(ValueError):
    """An answer that is none of the protocol's: the message says what was found instead."""


class WebPageError(MalformedAnswerError):
    """A web page in the answer's place."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; ``usage`` is None where it does not tell."""

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage | None
    silence: Silence
    """The reason, if nothing is left of the text."""


def read_answer(content: bytes, endpoint: Literal["chat", "completions"]) -> Answer:
    """The first choice of an answer.

    Raises:
        MalformedAnswerError: if it is not JSON, or lacks what the protocol promises, or has it in another type.
    """
    try:
        body = parse_json(content, half_surrogates=True)
    except UnreadableError as error:
        if content.lstrip().startswith(b"<"):
            raise WebPageError(f"a web page: {excerpt(content)}") from None
        raise MalformedAnswerError(f"{error}: {excerpt(content)}") from None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedAnswerError(f"no choices: {excerpt(content)}")
    choice = choices[0]
    message = choice.get("message") if endpoint == "chat" else None
    text = _said(message) if endpoint == "chat" else choice.get("text")
    finish_reason = choice.get("finish_reason")
    if not isinstance(text, str) or not isinstance(finish_reason, str | None):
        raise MalformedAnswerError(f"its choice has no text: {excerpt(content)}")
    return Answer(
        readable(text),
        "length" if finish_reason == "length" else "stop",
        _usage(body.get("usage"), content),
        Silence.of(message, finish_reason),
    )


def readable(text: str) -> str:
    """``text`` without keys, and with question marks for what JSON can say and files and databases cannot hold: half a
    surrogate pair, and the zero character."""
    text = redacted(text)
    return text if text.isascii() and "\0" not in text else text.replace("\0", "?").encode("utf-8", "replace").decode()


def cut(text: str, stop: tuple[str, ...]) -> str:
    """``text`` before the first of its stop strings: some servers keep them, some do not stop."""
    return text[: min((place for item in stop if (place := text.find(item)) >= 0), default=len(text))]


def most_chars(max_tokens: int) -> int:
    """The longest text of so many tokens; a longer one is from a server that ignores the limit."""
    return max_tokens * _LONGEST_TOKEN_CHARS


def excerpt(content: bytes) -> str:
    """The beginning of a malformed answer, in quotes."""
    return repr(shown(content[:_LOOKED_AT].decode("utf-8", "replace")))


def _said(message: Any) -> Any:
    """The message's text; a model that only thought, refused, or called a tool has said nothing."""
    if not isinstance(message, dict):
        return None
    if message.get("content") is None and ("content" in message or Silence.of(message, None) is not Silence.EMPTY):
        return ""
    return message.get("content")


def _usage(usage: Any, content: bytes) -> Usage | None:
    if usage is None:
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else ["?"]
    if None in counts:
        return None
    if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
        raise MalformedAnswerError(f"its usage is not two numbers of tokens: {excerpt(content)}")
    return Usage(*counts)
