"""A conversation in OpenAI's format, with tool calls, as the trajectory of an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from retro.reading import cut, problems


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Function(BaseModel):
    name: str
    arguments: str


class _Custom(BaseModel):
    name: str
    input: str


class _ToolCall(BaseModel):
    id: str
    function: _Function | None = None
    custom: _Custom | None = None

    @property
    def text(self) -> str:
        if self.function is not None:
            return f"{self.function.name}({self.function.arguments})"
        return "" if self.custom is None else f"{self.custom.name}({self.custom.input})"


class ChatMessage(BaseModel):
    """A message of ``/v1/chat/completions``. Keys that say nothing about the trajectory are ignored."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """Its text; the parts of a message are joined by line ends."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class MessagesError(ValueError):
    """Messages that do not make a trajectory."""


_MESSAGES: TypeAdapter[list[ChatMessage]] = TypeAdapter(list[ChatMessage])


def without_messages(document: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """``document`` with ``opening`` and ``steps`` in the place of its ``messages``, if it has any.

    Args:
        document: A trajectory's JSON, or a list of messages.

    Raises:
        MessagesError: naming the message, if it is not one, or answers a tool call that nobody made.
    """
    if not isinstance(document, Mapping):
        document = {"messages": document}
    if "messages" not in document:
        return dict(document)
    if strange := document.keys() & {"opening", "steps", "trajectory"}:
        raise MessagesError(f"not a trajectory: messages and {', '.join(sorted(strange))} say the same twice")
    rest = {key: value for key, value in document.items() if key != "messages"}
    try:
        return rest | _trajectory(_MESSAGES.validate_python(document["messages"]))
    except ValidationError as error:
        if (part := _other_part(document["messages"])) is not None:
            raise MessagesError(part) from None
        raise MessagesError(f"not a list of messages: {problems(error)}") from None


def _other_part(messages: Any) -> str | None:
    """A sentence about the first part of a message that is not text, such as an image; None if there is none."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str) and kind != "text":
                return f"message {index} has a part of type {cut(kind, 40)}; only text can be read"
    return None


def _trajectory(messages: Sequence[ChatMessage]) -> dict[str, Any]:
    """The opening and the steps.

    All text before the assistant's first message is the opening. Each tool call is a step, whose thought is the text of
    its message and whose observation is the answer to the call. An assistant's message without tool calls is a step
    whose action is the text. What the user says after it is part of the last step's observation.
    """
    opening: list[str] = []
    steps: list[dict[str, str]] = []
    observed: list[list[str]] = []
    calls: dict[str, list[str]] = {}
    for index, message in enumerate(messages):
        if message.role == "assistant":
            if not message.tool_calls:
                steps.append({"action": message.text})
                observed.append([])
            for number, call in enumerate(message.tool_calls or ()):
                steps.append({"action": call.text, "thought": "" if number else message.text})
                observed.append([])
                calls[call.id] = observed[-1]
        elif message.role == "tool":
            answered = calls.get(message.tool_call_id or "")
            if answered is None:
                raise MessagesError(
                    f"messages.{index}: tool_call_id {cut(str(message.tool_call_id), 40)!r}: no message before it has "
                    "this tool call"
                )
            answered.append(message.text)
        elif steps:
            observed[-1].append(message.text)
        else:
            opening.append(message.text)
    if not any(text.strip() for text in opening):
        raise MessagesError("messages: the task is missing: it is the text before the assistant's first message")
    if not steps:
        raise MessagesError("messages: there must be at least one of the assistant, whose actions are the trajectory")
    for step, texts in zip(steps, observed, strict=True):
        step["observation"] = "\n\n".join(filter(None, texts))
    return {"opening": "\n\n".join(opening), "steps": steps}
