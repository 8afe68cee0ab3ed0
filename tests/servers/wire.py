"""As much of HTTP/1.1 as an OpenAI-compatible server needs, over asyncio streams: sized bodies, kept connections.

Nothing but the standard library, so that a server process starts in a blink and costs little beside its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

LIMIT = 1 << 22
"""Bytes of one line at most, and of the buffer of a connection."""
GONE = (ConnectionError, asyncio.IncompleteReadError)
"""How it shows that the other side has left."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})

    @classmethod
    def of_json(cls, value: Any, status: int = 200) -> Response:
        return cls(status, json.dumps(value).encode())

    def encoded(self) -> bytes:
        """What goes over the wire, its length included."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"content-length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body


class NotHttpError(ConnectionError):
    """What arrived is not HTTP as it is spoken here."""


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection; None once the client has closed it."""
    try:
        start, headers = await _read_head(reader)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    method, path, _ = start.split(" ", 2)
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def read_response(reader: asyncio.StreamReader) -> Response:
    """The answer to a request.

    Raises:
        NotHttpError: if its body comes without a length.
    """
    start, headers = await _read_head(reader)
    if "content-length" not in headers:
        raise NotHttpError(f"an answer without content-length: {start}")
    body = await reader.readexactly(int(headers["content-length"]))
    kept = {name: value for name, value in headers.items() if name in ("content-type", "retry-after")}
    return Response(int(start.split(" ", 2)[1]), body, kept)


def encoded_request(request: Request, host: str) -> bytes:
    """What goes over the wire to ``host``."""
    headers = {**request.headers, "host": host, "content-length": str(len(request.body)), "connection": "keep-alive"}
    lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + request.body


Answer = Callable[[Request, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]
"""Writes the answer to a request; returns whether the connection is kept."""


async def listen(answer: Answer, port: int = 0) -> tuple[asyncio.Server, int]:
    """Answer requests on ``port`` of 127.0.0.1 (0: any free one); return the server and its port."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client has left, or the loop ends: there is nobody to tell.
        with contextlib.suppress(*GONE, asyncio.CancelledError):
            while (request := await read_request(reader)) is not None:
                if not await answer(request, reader, writer):
                    break
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", port, limit=LIMIT, backlog=1024)
    return server, int(server.sockets[0].getsockname()[1])


def unit_interval(*key: object) -> float:
    """A number in [0, 1) that the key decides."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head[:-4].split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return start, {name.strip().lower(): value.strip() for name, _, value in pairs}
