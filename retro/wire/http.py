"""The HTTP client under every server that is asked: answers have a size and a time, and no redirect is followed."""

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
"""Of one answer, decompressed; an error's body included. Headers are bounded by the HTTP library: 100 KiB."""
_ACCEPTED_ENCODINGS = "gzip, deflate"
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


def http_library() -> ModuleType:
    """The library that the OpenAI SDK sends its requests with: httpx2, or httpx before openai 3."""
    from openai import DEFAULT_CONNECTION_LIMITS

    return import_module(type(DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0])


def open_client(timeout_seconds: float, timeout_key: str = "", **options: Any) -> AsyncClient:
    """An HTTP client for the OpenAI SDK that reads every answer whole, within limits.

    Of an answer's headers the SDK sees ``location``, and ``retry-after`` in plain seconds; no others, so that no server
    sets cookies, charsets or the number of retries. A request whose answer is longer than ``MAX_ANSWER_BYTES``,
    compressed in another way than gzip or deflate, or not whole in time fails with an error of the HTTP library, as one
    whose connection breaks does.

    Args:
        timeout_seconds: Of one request, from the connection to the last byte of its answer.
        timeout_key: The config key that raises it, for error messages.
        options: Those of httpx's ``AsyncClient``.
    """
    from openai import DefaultAsyncHttpxClient

    library = http_library()

    class BoundedClient(DefaultAsyncHttpxClient):
        async def send(self, request: Request, *, stream: bool = False, **how: Any) -> Response:
            how["follow_redirects"] = False
            try:
                async with asyncio.timeout(timeout_seconds):  # a slow drip passes every read timeout
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
    """The decompressed body, never holding more than the limit."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise library.DecodingError(f"an answer in content-encoding {encoding!r}, which was not asked for")
    decoder = None if encoding == "identity" else zlib.decompressobj(_GZIP_OR_ZLIB)
    content = bytearray()
    async for piece in response.aiter_raw():
        if decoder is not None and decoder.eof:
            raise library.DecodingError(f"an answer that goes on after the end of its {encoding}")
        room = MAX_ANSWER_BYTES + 1 - len(content)
        try:
            content += piece[:room] if decoder is None else decoder.decompress(piece, room)
        except zlib.error as error:
            raise library.DecodingError(f"an answer that is not {encoding}: {error}") from None
        if len(content) > MAX_ANSWER_BYTES:
            raise library.RemoteProtocolError(f"an answer longer than {MAX_ANSWER_BYTES:,} bytes")
    if decoder is not None and content and not decoder.eof:
        raise library.DecodingError(f"an answer whose {encoding} ends too early")
    return bytes(content)


def _kept_headers(response: Response) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in response.headers.raw if name.lower() == b"location"][:1]
    wait = retry_after_seconds(response.headers)
    if wait is not None:
        kept.append((b"retry-after", str(wait).encode()))
    return kept
