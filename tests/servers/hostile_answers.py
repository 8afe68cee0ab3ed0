"""What a server can answer in the place of what it should: each kind of fault by its name, in :data:`FAULTS`."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.servers.wire import GONE, Response

DRIP_SECONDS = 0.02
_BOMB_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request that meets a fault."""

    right: Response
    """What should be answered."""
    key: str
    """The client's secret, which it sent."""
    method: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def json(self) -> dict[str, Any]:
        """The right answer's body; to a GET, that of a completion, for want of a better."""
        body: dict[str, Any] = json.loads(self.right.body)
        return {"choices": [{"index": 0, "message": {"content": "look"}}], "usage": {}, **body}


Fault = Callable[[Exchange], Awaitable[bool]]
"""Writes the answer; returns whether the connection is kept."""


def raw(make: Callable[[Exchange], bytes], kept: bool = False) -> Fault:
    """Sends these bytes, and closes the connection unless it is ``kept``."""

    async def send(exchange: Exchange) -> bool:
        exchange.writer.write(make(exchange))
        await exchange.writer.drain()
        return kept

    return send


def answers(status: int, body: bytes | Callable[[Exchange], bytes], **headers: str) -> Fault:
    """A whole HTTP answer; underscores in the headers' names are hyphens."""

    def make(exchange: Exchange) -> bytes:
        content = body(exchange) if callable(body) else body
        filled = {name.replace("_", "-"): value.replace("KEY", exchange.key) for name, value in headers.items()}
        return _head(status, {"content-length": str(len(content)), **filled}) + content

    return raw(make, kept=True)


def refuses(status: int, **headers: str) -> Fault:
    """An error in OpenAI's form, which repeats the key."""
    return answers(status, lambda it: _error(f"you sent Bearer {it.key}"), content_type="application/json", **headers)


def says(text: str | Callable[[str], str]) -> Fault:
    """The right answer with this for its text; a function of the key writes what stands between JSON's quotes."""

    def make(exchange: Exchange) -> bytes:
        written = json.dumps(text)[1:-1] if isinstance(text, str) else text(exchange.key)
        return json.dumps(exchange.json | {"choices": [_choice("PLACE")]}).replace("PLACE", written).encode()

    return answers(200, make)


def chooses(message: Any, finish_reason: Any = "stop") -> Fault:
    """The right answer with this message."""
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return answers(200, lambda it: json.dumps(it.json | {"choices": [choice]}).encode())


def changed(**fields: Any) -> Fault:
    """The right answer with these fields."""
    return answers(200, lambda it: json.dumps(it.json | fields).encode())


def counts(prompt: Any, completion: Any = 1) -> Fault:
    """The right answer with this usage."""
    return changed(usage={"prompt_tokens": prompt, "completion_tokens": completion})


def repeats(head: bytes, piece: bytes, pause_seconds: float = 0.0) -> Fault:
    """Sends ``head`` once, then ``piece`` until the client leaves."""

    async def send(exchange: Exchange) -> bool:
        exchange.writer.write(head)
        while True:
            exchange.writer.write(piece)
            await exchange.writer.drain()  # raises once the client has left
            await asyncio.sleep(pause_seconds)

    return send


def drips(make: Callable[[Exchange], bytes]) -> Fault:
    """Sends one byte at a time."""

    async def send(exchange: Exchange) -> bool:
        for byte in make(exchange):
            exchange.writer.write(bytes([byte]))
            await exchange.writer.drain()
            await asyncio.sleep(DRIP_SECONDS)
        return True

    return send


def hangs(head: bytes = b"") -> Fault:
    """Sends ``head``, and nothing more."""

    async def send(exchange: Exchange) -> bool:
        exchange.writer.write(head)
        with contextlib.suppress(*GONE):
            await exchange.reader.read()  # until the client leaves
        return False

    return send


async def _reset(exchange: Exchange) -> bool:
    connection = exchange.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.write(exchange.right.encoded()[:40])
    await exchange.writer.drain()
    exchange.writer.transport.abort()
    return False


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "x", "code": None, **fields}}).encode()


def _choice(text: str) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


@cache
def _bomb(wbits: int) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits)
    piece = b" " * 2**20
    return b"".join([*(compressor.compress(piece) for _ in range(_BOMB_BYTES // 2**20)), compressor.flush()])


def _letters(form: str) -> Callable[[str], str]:
    return lambda key: "".join(form.format(ord(letter)) for letter in key)


def _whole(exchange: Exchange) -> bytes:
    return exchange.right.encoded()


_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"transfer-encoding: chunked\r\n\r\n"
_SPACES = b"10000\r\n" + b" " * 65_536 + b"\r\n"
_CALL = [{"id": "1", "type": "function", "function": {"name": "go", "arguments": "{}"}}]
_ELSEWHERE = "http://127.0.0.1:9/v1/chat/completions"

STATUSES = (
    400,
    401,
    402,
    403,
    404,
    405,
    408,
    409,
    413,
    418,
    422,
    425,
    429,
    451,
    500,
    502,
    503,
    504,
    507,
    529,
    599,
    999,
)
FAULTS: dict[str, Fault] = {
    **{f"status-{status}": refuses(status) for status in STATUSES},
    "status-204": raw(lambda it: _head(204, {}), kept=True),
    "status-206": answers(206, lambda it: it.right.body[:20]),
    "status-101": raw(lambda it: b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello"),
    "status-199-endless": repeats(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "status-text": raw(lambda it: b"HTTP/1.1 fine OK\r\n\r\n"),
    "not-http": raw(lambda it: b"220 mail.example.org ESMTP " + it.key.encode() + b"\r\n"),
    "close-at-once": raw(lambda it: b""),
    "reset": _reset,
    "cut-headers": raw(lambda it: _whole(it)[:30]),
    "cut-body": raw(lambda it: _whole(it)[: -(len(it.right.body) // 2)]),
    "hang": hangs(),
    "hang-after-headers": hangs(_OK + b"content-length: 500\r\n\r\n{"),
    "drip": drips(_whole),
    "slow-headers": repeats(_OK, b"x-more: y\r\n", DRIP_SECONDS),
    "endless-body": repeats(_OK + b"\r\n", b"x" * 65_536),
    "endless-json": repeats(_CHUNKED, b"10000\r\n" + b"[" * 65_536 + b"\r\n"),
    "endless-spaces": repeats(_CHUNKED, _SPACES),
    "endless-error": repeats(b"HTTP/1.1 400 No\r\ntransfer-encoding: chunked\r\n\r\n", _SPACES),
    "endless-bytes-of-chunks": repeats(_CHUNKED, b"1\r\n \r\n" * 10_000),
    "endless-chunk-extension": repeats(_CHUNKED + b"1;", b"x" * 65_536),
    "endless-header": repeats(_OK + b"x: ", b"y" * 65_536),
    "endless-headers": repeats(_OK, b"x-more: yes\r\n" * 1_000),
    "endless-trailers": repeats(_CHUNKED + b"0\r\n", b"x-more: yes\r\n" * 1_000),
    "large-headers": answers(200, lambda it: it.right.body, x_large="y" * 90_000),
    "headers-latin-1": raw(lambda it: _OK + b"x: \xe9\xff\r\ncontent-length: 2\r\n\r\n{}", kept=True),
    "header-illegal": raw(lambda it: _OK + f"authorization {it.key}\r\n\r\n".encode()),
    "cookies": answers(429, _error("no"), set_cookie="key=KEY; Path=/; Max-Age=99999"),
    "charset-zlib": answers(400, zlib.compress(b" " * 1_000_000), content_type="text/plain; charset=zlib_codec"),
    "length-too-long": raw(lambda it: _head(200, {"content-length": str(len(it.right.body) + 9)}) + it.right.body),
    "length-too-short": raw(lambda it: _head(200, {"content-length": "9"}) + it.right.body, kept=True),
    "length-huge": raw(lambda it: _head(200, {"content-length": "9" * 18}) + it.right.body),
    "length-negative": raw(lambda it: _head(200, {"content-length": "-1"}) + it.right.body),
    "length-twice": raw(lambda it: _OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}"),
    "chunk-garbage": raw(lambda it: _CHUNKED + b"nonsense\r\n{}\r\n"),
    "chunk-cut": raw(lambda it: _CHUNKED + b"ff\r\n{"),
    "gzip-bomb": answers(200, lambda it: _bomb(31), content_encoding="gzip"),
    "gzip-bomb-error": answers(500, lambda it: _bomb(31), content_encoding="gzip"),
    "deflate-bomb": answers(200, lambda it: _bomb(15), content_encoding="deflate"),
    "gzip-twice": answers(200, lambda it: gzip.compress(_bomb(31)), content_encoding="gzip, gzip"),
    "gzip-garbage": answers(200, b"this is not gzip", content_encoding="gzip"),
    "gzip-cut": answers(200, lambda it: gzip.compress(it.right.body)[:-12], content_encoding="gzip"),
    "gzip-endless-end": repeats(_OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"{}"), b"x" * 65_536),
    "brotli": answers(200, lambda it: it.right.body, content_encoding="br"),
    "encoding-key": answers(200, b"x", content_encoding="KEY"),
    "json-half": answers(200, lambda it: it.right.body[: len(it.right.body) // 2]),
    "json-python": answers(200, lambda it: repr(it.json).encode()),
    "json-nan": answers(200, lambda it: json.dumps(it.json | {"x": float("nan")}).encode()),
    "json-float": answers(200, lambda it: it.right.body[:-1] + b', "x": 1e999}'),
    "json-integer": answers(200, lambda it: it.right.body[:-1] + b', "x": ' + b"9" * 100_000 + b"}"),
    "json-deep": answers(200, b"[" * 20_000 + b"]" * 20_000),
    "json-deep-error": answers(400, b'{"error": {"code": ' + b"[" * 900 + b"]" * 900 + b"}}"),
    "json-open": answers(200, b'{"choices":' * 20_000),
    "json-wide": answers(200, b'{"choices": [' + b"{}," * 600_000 + b"{}]}"),
    "json-nothing": answers(200, b""),
    "json-null": answers(200, b"null"),
    "json-list": answers(200, b"[1, 2]"),
    "json-text": answers(200, b'"go to desk 1"'),
    "json-utf-16": answers(200, lambda it: json.dumps(it.json | {"x": it.key}).encode("utf-16")),
    "json-utf-16-be": answers(200, lambda it: json.dumps(it.json | {"x": it.key}).encode("utf-16-be")),
    "json-latin-1": answers(200, '{"choices": "\xe9"}'.encode("latin-1")),
    "error-in-200": answers(200, lambda it: _error(f"overloaded, {it.key}")),
    "page": answers(200, lambda it: f"<html>{it.key}</html>".encode(), content_type="text/html"),
    "choices-null": changed(choices=None),
    "choices-empty": changed(choices=[]),
    "choices-of-null": changed(choices=[None]),
    "message-null": chooses(None),
    "content-number": chooses({"content": 7}),
    "content-parts": chooses({"content": [{"type": "text", "text": "look"}]}),
    "reason-number": chooses({"content": "look"}, finish_reason=7),
    "text-large": says("x" * 1_900_000),
    "text-lines": says("look\n" * 300_000),
    "text-surrogate": says(lambda key: "look \\ud83d"),
    "text-zero": says(lambda key: "look \\u0000"),
    "text-control": says("\x1b[2J\x07look"),
    "silent-null": chooses({"content": None}),
    "silent-filter": chooses({"content": None}, finish_reason="content_filter"),
    "silent-refusal": chooses({"content": None, "refusal": "No."}),
    "silent-tool": chooses({"content": None, "tool_calls": _CALL}, finish_reason="tool_calls"),
    "silent-thought": chooses({"content": "", "reasoning_content": "Hm"}, finish_reason="length"),
    "silent-blank": chooses({"content": " \t\n "}),
    "usage-text": counts("many"),
    "usage-negative": counts(-5),
    "usage-true": counts(True),
    "usage-half": counts(1.5),
    "usage-63-bits": counts(2**63 - 1, 2**63 - 1),
    "usage-64-bits": counts(2**64),
    "usage-4000-digits": answers(200, lambda it: re.sub(rb'_tokens": ', b'_tokens": ' + b"9" * 4000, it.right.body)),
    "usage-list": changed(usage=[1, 2]),
    "usage-none": changed(usage=None),
    **{f"redirect-{status}": refuses(status, location=_ELSEWHERE) for status in (301, 302, 303, 307, 308)},
    "redirect-nowhere": refuses(302),
    "redirect-garbage": refuses(302, location="http://[::1:99999999/\x7f"),
    "redirect-key": refuses(307, location="http://127.0.0.1:9/?key=KEY"),
    "wait-second": refuses(429, retry_after="1"),
    "wait-milliseconds": refuses(429, retry_after_ms="20"),
    "wait-hour": refuses(429, retry_after="3600"),
    "wait-hour-503": refuses(503, retry_after="3600"),
    "wait-hour-500": refuses(500, retry_after="3600"),
    "wait-1e300": refuses(429, retry_after="1e300"),
    "wait-infinite": refuses(429, retry_after="inf"),
    "wait-nan": refuses(429, retry_after="nan"),
    "wait-negative": refuses(429, retry_after="-7"),
    "wait-year-9999": refuses(429, retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
    "wait-past": refuses(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    "wait-text": refuses(429, retry_after="after lunch"),
    "key-in-text": says(lambda key: f"look {key}"),
    "key-slashes": says(lambda key: "look " + key.replace("/", "\\/")),
    "key-escaped-letter": says(lambda key: "look " + key.replace("s", "\\u0073")),
    "key-escaped": says(_letters("\\u{:04x}")),
    "key-escaped-twice": says(_letters("\\\\u{:04x}")),
    "key-upper": says(str.upper),
    "key-url": says(_letters("%{:02X}")),
    "key-html": says(_letters("&#{};")),
    "key-zeros": says("\\u0000".join),
    "key-two-words": says(lambda key: f"{key[:9]} {key[9:]}"),
    "key-cut": says(lambda key: f"look {key[:-3]}"),
    "key-in-reason": answers(200, lambda it: it.right.body.replace(b'"stop"', b'"%s"' % it.key.encode())),
    "key-in-header": answers(500, b"no", x_echo="Bearer KEY", x_request_id="KEY"),
    "key-in-status-line": raw(lambda it: f"HTTP/1.1 500 {it.key}\r\ncontent-length: 0\r\n\r\n".encode(), kept=True),
    "key-in-broken-json": answers(200, lambda it: b'{"choices": "' + _letters("\\u{:04x}")(it.key).encode()),
    "key-utf-16-error": answers(400, lambda it: it.key.encode("utf-16")),
    "key-utf-32-page": answers(200, lambda it: b"<" + it.key.encode("utf-32-le")),
    "key-at-the-cut": answers(400, lambda it: _error("x" * 490 + it.key)),
    "key-over-lines": answers(500, lambda it: "\n".join(it.key).encode()),
    "key-in-code": answers(400, lambda it: _error("no", code=it.key, type=it.key)),
}  # fmt: skip
