"""Request bodies: read within limits, and checked key by key."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect

from retro.reading import UnreadableError, parse_json, problems
from retro.serving.failures import RequestError

BODY_SECONDS = 30.0
"""For the whole body to arrive."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]

Body = TypeVar("Body", bound=BaseModel)


class ReflectionBody(BaseModel):
    """``POST /v1/reflections``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    trajectory: dict[str, Any] | list[Any]
    """An object as ``retro reflect`` reads it; one with ``messages`` instead of ``opening`` and ``steps``; or the list
    of messages alone."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Reflections that are drawn, of which the best is kept."""
    seed: Seed = 0
    reflection_id: str | None = None
    """Of the reflection that this attempt followed: the attempt is recorded as its outcome. None for a first attempt,
    or if that reflection was not recorded."""


def _recorded(id: Any) -> Any:
    if id is None:
        raise ValueError("null means that the reflection was not recorded, so it has no outcome to report")
    return id


class OutcomeBody(BaseModel):
    """``POST /v1/outcomes``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reflection_id: Annotated[str, BeforeValidator(_recorded)]
    return_: Annotated[float | None, Field(alias="return", ge=0, le=1)] = None
    """Of the retry; by default 1 for a success and 0 for a failure."""
    success: bool | None = None
    """By default, whether the return is 1."""
    trajectory: dict[str, Any] | list[Any] | None = None
    """The retry's, in the forms of :class:`ReflectionBody`."""

    @model_validator(mode="after")
    def _says_something(self) -> OutcomeBody:
        if self.return_ is None and self.success is None:
            raise ValueError("give return, success or both")
        return self


async def read_body(request: Request, form: type[Body], limit: int) -> Body:
    """The body as ``form``. Raises RequestError: see :func:`read_json` and :func:`as_form`."""
    return as_form((await read_json(request, limit))[1], form)


def as_form(tree: Any, form: type[Body]) -> Body:
    """``tree`` as ``form``. Raises RequestError, 422, if it does not have the form."""
    try:
        return form.model_validate(tree)
    except ValidationError as error:
        raise RequestError(422, "invalid_body", f"The body does not fit: {problems(error)}.") from None


async def read_json(request: Request, limit: int) -> tuple[bytes, Any]:
    """The body, and the JSON value that it is.

    Raises:
        RequestError: 415 if it is not declared as JSON, 413 if it is longer than ``limit`` bytes, 408 if it does not
            arrive, 400 if it is not JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page of another site can send other types without being asked
        raise RequestError(415, "not_json", "Send JSON, with the header Content-Type: application/json.")
    content = await _content(request, limit)
    try:
        return content, parse_json(content, "the body", limit)
    except UnreadableError as error:
        raise RequestError(400, "unreadable_body", f"The body cannot be read: {error}.") from None


async def _content(request: Request, limit: int) -> bytes:
    too_long = RequestError(413, "body_too_large", f"The body is longer than {limit:,} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_long
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limit:
                    raise too_long
    except TimeoutError:
        raise RequestError(408, "slow_body", f"The body did not arrive within {BODY_SECONDS:.0f} s.") from None
    except ClientDisconnect:
        raise RequestError(499, "disconnected", "The client has gone.") from None
    return bytes(content)
