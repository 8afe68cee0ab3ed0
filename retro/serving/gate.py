"""The outermost layer of the server: it lets requests in and logs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retro.serving.access import Access
from retro.serving.failures import RequestError
from retro.types import Usage

logger = logging.getLogger(__name__)

OPEN = ("/healthz", "/readyz")
"""Routes that need no key."""
_UNKNOWN = "unknown"


@dataclass(slots=True)
class RequestRecord:
    """What the log says about one request."""

    id: str = field(default_factory=lambda: uuid4().hex)
    method: str = ""
    route: str = _UNKNOWN
    """One of the server's paths; any other path is not logged, since it may hold anything."""
    status: int = 500
    seconds: float = 0.0
    code: str = ""
    """Of an error (:class:`~retro.serving.failures.RequestError`)."""
    usage: Usage = field(default_factory=Usage)

    @property
    def fields(self) -> dict[str, Any]:
        found = {
            "id": self.id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "seconds": round(self.seconds, 4),
        }
        if self.code:
            found["code"] = self.code
        if self.usage.total:
            found |= {"prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens}
        return found


class Gate:
    """An ASGI app around the server's own.

    Args:
        app: Reads the request's :class:`RequestRecord` as ``request.state.record``.
        access: Decides about requests to all routes but :data:`OPEN`.
        routes: The paths that are logged.
        finished: Called with the record of each request that has been answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        routes: Collection[str],
        finished: Callable[[RequestRecord], None],
    ) -> None:
        self._app, self._access = app, access
        self._routes = frozenset(routes)
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        record = RequestRecord(method=scope["method"], route=path if path in self._routes else _UNKNOWN)
        scope.setdefault("state", {})["record"] = record
        started = time.perf_counter()

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", record.id.encode())]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if path not in OPEN:
                self._access.check(headers)
            await self._app(scope, receive, send_recorded)
        except RequestError as error:
            await refusal(error, record)(scope, receive, send_recorded)
        except Exception:  # the app has answered it
            logger.exception("failed", extra={"fields": {"id": record.id}})
        finally:
            record.seconds = time.perf_counter() - started
            if path not in OPEN:
                logger.info("request", extra={"fields": record.fields})
            self._finished(record)


def refusal(error: RequestError, record: RequestRecord) -> JSONResponse:
    """The answer to a request that ends in an error."""
    record.code = error.code
    return JSONResponse(error.body, error.status, error.headers)
