"""The JSON that an OpenAI-compatible server answers with, checked and read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from retro.types import Usage

_MAX_SHOWN = 200


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


def read_answer(content: bytes, endpoint: Literal["chat", "completions"]) -> Answer:
    """The first choice of an answer.

    Raises:
        MalformedAnswerError: if it is not JSON, or lacks what the protocol promises, or has it in another type.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith(b"<"):
            raise WebPageError(f"a web page: {_shown(content)}") from None
        raise MalformedAnswerError(f"not JSON ({_reason(error)}): {_shown(content)}") from None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedAnswerError(f"no choices: {_shown(content)}")
    choice = choices[0]
    text = _chat_text(choice) if endpoint == "chat" else choice.get("text")
    finish_reason = choice.get("finish_reason")
    if not isinstance(text, str) or not isinstance(finish_reason, str | None):
        raise MalformedAnswerError(f"its choice has no text: {_shown(content)}")
    readable = text.encode("utf-8", "replace").decode()  # JSON can say half a surrogate pair, no file of ours can
    return Answer(readable, "length" if finish_reason == "length" else "stop", _usage(body.get("usage"), content))


def cut(text: str, stop: tuple[str, ...]) -> str:
    """``text`` before the first of its stop strings: some servers keep them, some do not stop."""
    return text[: min((place for item in stop if (place := text.find(item)) >= 0), default=len(text))]


def _chat_text(choice: dict[str, Any]) -> Any:
    """The message's text; a model that only thought, or refused, has said nothing."""
    message = choice.get("message")
    if not isinstance(message, dict) or "content" not in message:
        return None
    return "" if message["content"] is None else message["content"]


def _usage(usage: Any, content: bytes) -> Usage | None:
    if usage is None:
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else ["?"]
    if None in counts:
        return None
    if not all(type(count) is int and count >= 0 for count in counts):
        raise MalformedAnswerError(f"its usage is not two numbers: {_shown(content)}")
    return Usage(*counts)


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _shown(content: bytes) -> str:
    text = " ".join(content[: 4 * _MAX_SHOWN].decode("utf-8", "replace").split())
    return repr(text[:_MAX_SHOWN]) + ("…" if len(text) > _MAX_SHOWN or len(content) > 4 * _MAX_SHOWN else "")
