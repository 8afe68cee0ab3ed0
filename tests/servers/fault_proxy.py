"""A proxy that breaks a given share of the requests to a real server, in the ways that servers and networks break.

    python -m tests.servers.fault_proxy --port 8001 --target http://127.0.0.1:8000 --rates '{"hang": 0.02}' [--seed 0]

Which fault a request meets is drawn by (seed, its body, how often that body was sent before): what else is under way
does not matter. GET ``/faults`` tells what was done.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self
from urllib.parse import urlsplit

from tests.servers.processes import live_with_stdin
from tests.servers.wire import GONE, LIMIT, Request, Response, encoded_request, listen, read_response, unit_interval


class Fault(StrEnum):
    """What can go wrong with a request."""

    RATE_LIMIT = "rate-limit"
    """429, and not a word on when to come back."""
    RETRY_AFTER = "retry-after"
    """429 with ``Retry-After: 1`` (seconds)."""
    RETRY_AFTER_MS = "retry-after-ms"
    """429 with ``retry-after-ms: 10``."""
    SERVER_ERROR = "server-error"
    """500 with a page instead of JSON."""
    HANG = "hang"
    """No answer, ever."""
    CUT = "cut"
    """Half of the real answer's body, then the connection is gone."""
    DRIP = "drip"
    """The real answer, one byte at a time, and never the last one."""
    MALFORMED = "malformed"
    """200 with the real answer's body, cut in the middle: no JSON."""
    WRONG_TYPES = "wrong-types"
    """200 with JSON of the wrong types in the real answer's place."""


_STRAIGHT = {
    Fault.RATE_LIMIT: Response(429, b'{"error": {"message": "too many requests", "code": "rate_limit_exceeded"}}'),
    Fault.RETRY_AFTER: Response(429, b'{"error": {"message": "too many"}}', {"retry-after": "1"}),
    Fault.RETRY_AFTER_MS: Response(429, b'{"error": {"message": "too many"}}', {"retry-after-ms": "10"}),
    Fault.SERVER_ERROR: Response(500, b"<html>Internal Server Error</html>", {"content-type": "text/html"}),
}
_WRONG: tuple[dict[str, Any], ...] = (
    {"choices": None},
    {"choices": []},
    {"choices": [None]},
    {"choices": [{"index": 0, "finish_reason": "stop", "message": None, "text": None}]},
    {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": 7}, "text": 7}]},
    {"usage": {"prompt_tokens": "many", "completion_tokens": "few", "total_tokens": "all"}},
    {"usage": [1, 2, 3]},
)
DRIP_SECONDS = 0.05
"""Between two bytes: far below any read timeout, and the answer takes longer than any whole one."""


def drawn(rates: Mapping[Fault, float], seed: int, body: bytes, sent_before: int) -> Fault | None:
    """The fault of a request; None lets it pass."""
    place = unit_interval("fault", seed, body, sent_before)
    for fault, rate in rates.items():
        if place < rate:
            return fault
        place -= rate
    return None


class FaultProxy:
    """``async with FaultProxy(target, rates) as proxy`` listens at ``proxy.url`` and passes on to ``target``.

    Args:
        target: ``http://127.0.0.1:N`` of the real server.
        rates: The share of the requests that meet each fault.
        seed: Of the draws.

    Raises:
        ValueError: if the rates are no shares of a whole.
    """

    def __init__(self, target: str, rates: Mapping[Fault, float], seed: int = 0) -> None:
        if any(rate < 0 for rate in rates.values()) or sum(rates.values()) > 1 + 1e-9:
            raise ValueError(f"rates must be ≥ 0 and add up to at most 1: {dict(rates)}")
        parts = urlsplit(target)
        if parts.hostname is None or parts.port is None:
            raise ValueError(f"target must be http://HOST:PORT, not {target!r}")
        self.url = ""
        self._host, self._port = parts.hostname, parts.port
        self._rates = dict(rates)
        self._seed = seed
        self._sent: Counter[bytes] = Counter()
        self._passed: Counter[bytes] = Counter()
        self._faults: Counter[Fault] = Counter()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> asyncio.Server:
        self._server, port = await listen(self.answer, port)
        self.url = f"http://127.0.0.1:{port}"
        return self._server

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for _, writer in self._idle:
            writer.close()

    def counts(self) -> dict[str, Any]:
        """What was done: ``requests``, ``passed``, ``faults`` by kind.

        Of the bodies, each counted once: ``asked`` by how often it was sent, ``unanswered`` to the end,
        ``passed_again`` although the whole answer had been given.
        """
        return {
            "requests": self._sent.total(),
            "passed": self._passed.total(),
            "faults": {fault.value: self._faults[fault] for fault in Fault if self._faults[fault]},
            "asked": {str(times): count for times, count in sorted(Counter(self._sent.values()).items())},
            "unanswered": len(self._sent) - len(self._passed),
            "passed_again": sum(times > 1 for times in self._passed.values()),
        }

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if request.method == "GET":
            told = request.path == "/faults"
            await _write(writer, Response.of_json(self.counts()) if told else await self._forwarded(request))
            return True
        body = hashlib.blake2b(request.body, digest_size=16).digest()
        fault = drawn(self._rates, self._seed, body, self._sent[body])
        self._sent[body] += 1
        if fault is None:
            real = await self._forwarded(request)
            self._passed[body] += 1  # first: whoever has the answer finds it counted
            await _write(writer, real)
            return True
        self._faults[fault] += 1
        return await self._broken(fault, request, body, reader, writer)

    async def _broken(
        self, fault: Fault, request: Request, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if fault in _STRAIGHT:
            await _write(writer, _STRAIGHT[fault])
            return True
        if fault is Fault.HANG:
            await reader.read()  # until the client gives up
            return False
        real = await self._forwarded(request)
        if real.status != 200:  # broken already
            await _write(writer, real)
            return True
        match fault:
            case Fault.CUT:
                writer.write(real.encoded()[: -(len(real.body) // 2)])
                await writer.drain()
                return False
            case Fault.DRIP:
                await _drip(writer, real.encoded())
                await reader.read()  # until the client gives up
                return False
            case Fault.MALFORMED:
                await _write(writer, Response(200, real.body[: len(real.body) // 2]))
                return True
            case _:
                wrong = _WRONG[int(unit_interval("wrong", self._seed, body, self._sent[body]) * len(_WRONG))]
                await _write(writer, Response.of_json(json.loads(real.body) | wrong))
                return True

    async def _forwarded(self, request: Request) -> Response:
        """The real server's answer, over a connection that is kept for the next one."""
        sent = encoded_request(request, f"{self._host}:{self._port}")
        while self._idle:
            reader, writer = self._idle.pop()
            with contextlib.suppress(*GONE):  # closed while it was idle: the next one, or a fresh one
                return await self._exchange(reader, writer, sent)
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=LIMIT)
        return await self._exchange(reader, writer, sent)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> Response:
        kept = False
        try:
            writer.write(sent)
            await writer.drain()
            response = await read_response(reader)
            kept = True
            return response
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                writer.close()


async def _write(writer: asyncio.StreamWriter, response: Response) -> None:
    writer.write(response.encoded())
    await writer.drain()


async def _drip(writer: asyncio.StreamWriter, sent: bytes) -> None:
    for place in range(len(sent) - 1):
        writer.write(sent[place : place + 1])
        await writer.drain()  # raises once the client has left
        await asyncio.sleep(DRIP_SECONDS)


async def serve(proxy: FaultProxy, port: int) -> None:
    async with await proxy.start(port) as server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", required=True, help="http://127.0.0.1:N of the real server")
    parser.add_argument("--rates", type=json.loads, default={}, help='JSON, for example {"hang": 0.02, "cut": 0.05}')
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rates = {Fault(name): float(rate) for name, rate in arguments.rates.items()}
    live_with_stdin()
    asyncio.run(serve(FaultProxy(arguments.target, rates, arguments.seed), arguments.port))


if __name__ == "__main__":
    main()
