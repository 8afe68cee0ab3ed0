"""OpenAI's chat protocol: a message about a failed attempt is answered by a reflection."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from retro.buffer.messages import ChatMessage
from retro.reading import UnreadableError, cut, parse_json
from retro.serving.bodies import Seed
from retro.serving.failures import RequestError
from retro.serving.service import Answer, Service
from retro.types import Trajectory

_DOCUMENT_KEYS = ("opening", "trajectory", "messages")
"""A JSON object with one of these is a trajectory; any other text is the opening of one."""
_TEXT = {"type": "text"}


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatBody(BaseModel):
    """``POST /v1/chat/completions``. Options that it does not name are ignored: ``temperature``, for example, since
    the export says how its reflections are sampled."""

    model_config = ConfigDict(extra="ignore")
    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    n: int | None = None
    seed: Seed | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    stop: Any = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None

    def check(self, service: Service) -> None:
        """Raises RequestError if the answer would not be what the options ask for."""
        if self.model != service.name:
            message = f"This server has no model {cut(self.model, 60)!r}; it has {service.name!r}."
            raise RequestError(404, "model_not_found", message)
        if self.n not in (None, 1):
            raise RequestError(422, "unsupported", "n must be 1: POST /v1/reflections answers with all candidates.")
        format = None if self.response_format == _TEXT else self.response_format
        asked = {"tools": self.tools, "functions": self.functions, "stop": self.stop, "logprobs": self.logprobs}
        for name, value in {**asked, "response_format": format}.items():
            if value:
                raise RequestError(422, "unsupported", f"{name} is not supported: a reflection is plain text.")
        for name, most in (("max_tokens", self.max_tokens), ("max_completion_tokens", self.max_completion_tokens)):
            if most is not None and most < service.max_tokens:
                raise RequestError(
                    422,
                    "too_few_tokens",
                    f"{name} is {most}, and a reflection of this model may have {service.max_tokens} tokens: leave it "
                    "out, or ask for at least as many.",
                )


async def answer_chat(body: ChatBody, service: Service) -> Answer:
    """The reflection on what the last user message holds; without a seed, each request draws another one.

    Raises:
        RequestError: see :meth:`ChatBody.check` and :meth:`retro.serving.service.Service.reflect`.
    """
    body.check(service)
    seed = secrets.randbits(63) if body.seed is None else body.seed
    return await service.reflect(trajectory_of(body.messages), None, seed, record=False)


def trajectory_of(messages: list[ChatMessage]) -> Trajectory | Mapping[str, Any]:
    """The trajectory in the last user message.

    A JSON object with ``opening``, ``trajectory`` or ``messages`` is one; any other text is the opening of a trajectory
    without steps, whose return is 0.

    Raises:
        RequestError: if no user message has text.
    """
    text = next((message.text for message in reversed(messages) if message.role == "user"), "")
    if not text.strip():
        raise RequestError(422, "no_user_message", "The last user message must say what was tried and failed.")
    if text.lstrip().startswith("{"):
        try:
            document = parse_json(text)
        except UnreadableError:
            return Trajectory(text)
        if isinstance(document, Mapping) and any(key in document for key in _DOCUMENT_KEYS):
            return document
    return Trajectory(text)


def completion_json(id: str, service: Service, answer: Answer) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": answer.reflected.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {**_head(id, "chat.completion", service), "choices": [choice], "usage": answer.usage_json}


def events(id: str, service: Service, answer: Answer, body: ChatBody) -> Iterator[str]:
    """The same as server-sent events, with the whole text in one of them."""
    head = _head(id, "chat.completion.chunk", service)
    for delta, reason in (
        ({"role": "assistant", "content": ""}, None),
        ({"content": answer.reflected.text}, None),
        ({}, answer.finish_reason),
    ):
        yield _event(head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]})
    if body.stream_options is not None and body.stream_options.include_usage:
        yield _event(head | {"choices": [], "usage": answer.usage_json})
    yield "data: [DONE]\n\n"


def models_json(service: Service) -> dict[str, Any]:
    """The list of models: there is one."""
    model = {"id": service.name, "object": "model", "created": service.started, "owned_by": "retro"}
    return {"object": "list", "data": [model]}


def _head(id: str, kind: Literal["chat.completion", "chat.completion.chunk"], service: Service) -> dict[str, Any]:
    return {"id": f"chatcmpl-{id}", "object": kind, "created": int(time.time()), "model": service.name}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
