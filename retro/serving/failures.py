"""Requests that are not answered: each has a status, a code for programs, and one sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 504: "timeout_error"}
"""The ``type`` that clients of OpenAI's API know; by default it tells whose fault the error is."""


class RequestError(Exception):
    """A request that ends in an error.

    Args:
        status: The HTTP status.
        code: Names the problem; it stands in the log, which never holds the message.
        message: One sentence for the caller. It may name keys of the body.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer, in the form of OpenAI's API."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "code": self.code}}
