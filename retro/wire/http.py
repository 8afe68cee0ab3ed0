"""The HTTP client for all servers: it limits the size and the time of answers, and follows no redirects."""

from __future__ import annotations

import asyncio
import zlib
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from retro.wire.retrying import retry_after_seconds

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Request, Response

MAX_ANSWER_BYTES = 2**21
"""For one answer, decompressed, also an error's. The HTTP library limits headers to 100 KiB."""
_ACCEPTED_ENCODINGS = "gzip, deflate"
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


def http_library() -> ModuleType:
    """The HTTP library of the OpenAI SDK: httpx2, or httpx before openai 3."""
    from openai import DEFAULT_CONNECTION_LIMITS

    return import_module(type(DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0])


def open_client(timeout_seconds: float, timeout_key: str = "", **options: Any) -> AsyncClient:
    """An HTTP client for the OpenAI SDK that reads every answer whole, within limits.

    The SDK sees only two headers of an answer, ``location`` and ``retry-after`` (in plain seconds), so that a server
    cannot set cookies, charsets or the number of retries. An answer that is longer than ``MAX_ANSWER_BYTES``,
    compressed otherwise than by gzip or deflate, or incomplete when the time is up raises an error of the HTTP library,
    as a broken connection does.

    Args:
        timeout_seconds: For one request, from the connection to the last byte of its answer.
        timeout_key: The config key that raises it, for error messages.
        options: Those of httpx's ``AsyncClient``.
    """
    from openai import DefaultAsyncHttpxClient

    library = http_library()

    class BoundedClient(DefaultAsyncHttpxClient):
        async def send(self, request: Request, *, stream: bool = False, **how: Any) -> Response:
            how["follow_redirects"] = False
            try:
                async with asyncio.timeout(
                    timeout_seconds
                ):  # a server that sends a byte at a time never exceeds a read timeout
                    response = await super().send(request, stream=True, **how)
                    try:
                        content = await _read(response, library)
                    finally:
                        await response.aclose()
            except TimeoutError:
                key = f" ({timeout_key})" if timeout_key else ""
                problem = f"no whole answer within {timeout_seconds:g} s{key}"
                raise library.ReadTimeout(problem, request=request) from None
            answer: Response = library.Response(
                response.status_code, headers=_kept_headers(response), content=content, request=request
            )
            return answer

    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return BoundedClient(headers={"accept-encoding": _ACCEPTED_ENCODINGS}, cookies=no_cookies, **options)


async def _read(response: Response, library: ModuleType) -> bytes:
    """The decompressed body; memory never holds more of it than the limit."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise library.DecodingError(f"an answer in content-encoding {encoding!r}, which was not asked for")
    decoder = None if encoding == "identity" else zlib.decompressobj(_GZIP_OR_ZLIB)
    content = bytearray()
    async for piece in response.aiter_raw():
        if decoder is not None and decoder.eof:
            raise library.DecodingError(f"an answer that goes on after the end of its {encoding} stream")
        room = MAX_ANSWER_BYTES + 1 - len(content)
        try:
            content += piece[:room] if decoder is None else decoder.decompress(piece, room)
        except zlib.error as error:
            raise library.DecodingError(f"an answer that is not {encoding}: {error}") from None
        if len(content) > MAX_ANSWER_BYTES:
            raise library.RemoteProtocolError(f"an answer longer than {MAX_ANSWER_BYTES:,} bytes")
    if decoder is not None and content and not decoder.eof:
        raise library.DecodingError(f"an answer whose {encoding} stream ends too early")
    return bytes(content)


def _kept_headers(response: Response) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in response.headers.raw if name.lower() == b"location"][:1]
    wait = retry_after_seconds(response.headers)
    if wait is not None:
        kept.append((b"retry-after", str(wait).encode()))
    return kept
