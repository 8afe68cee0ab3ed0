"""The Model Context Protocol's streamable HTTP: ``POST /mcp``."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from retro.serving.bodies import read_json
from retro.serving.service import Service
from retro.serving.tools import make_tools


class McpEndpoint:
    """An ASGI app that answers each message on its own: a session could be stolen, and would have to be kept.

    Bodies are read within the limits of every other route before the SDK sees them. Access is checked by the gate.
    """

    def __init__(self, service: Service) -> None:
        self._limit = service.limits.body_bytes
        self._manager = StreamableHTTPSessionManager(make_tools(service), stateless=True)

    def run(self) -> AbstractAsyncContextManager[None]:
        """Must surround all requests."""
        return self._manager.run()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content, _ = await read_json(Request(scope, receive), self._limit)
        unread: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._manager.handle_request(scope, replay, send)
