"""A server that answers as it should, except for one kind of fault, which the URL names.

    python -m tests.servers.hostile_server --port 8001

``http://127.0.0.1:8001/KIND/PERCENT/v1`` is an OpenAI-compatible server of which PERCENT of the requests meet the fault
KIND (:data:`tests.servers.hostile_answers.FAULTS`); which ones is drawn by (the body, how often it was sent before).
The right answers are those of :mod:`tests.servers.completion_server`. GET ``/faults`` tells how many requests met each.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from dataclasses import replace

from tests.servers.completion_server import CompletionServer
from tests.servers.hostile_answers import FAULTS, Exchange
from tests.servers.processes import live_with_stdin
from tests.servers.wire import Request, Response, listen, unit_interval


class HostileServer:
    """Answers requests, and counts those that it broke."""

    def __init__(self) -> None:
        self._right = CompletionServer()
        self._sent: Counter[tuple[str, bytes]] = Counter()
        self._broken: Counter[str] = Counter()

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if request.path == "/faults":
            writer.write(Response.of_json(dict(self._broken)).encoded())
            await writer.drain()
            return True
        _, kind, percent, path = request.path.split("/", 3)
        if request.method == "GET":
            right = Response.of_json({"data": [{"id": "scripted"}]})
        else:
            right = self._right.completion(replace(request, path=f"/{path}"))
        place = f"{kind}/{percent}"
        draw = unit_interval(place, request.body, self._sent[place, request.body])
        self._sent[place, request.body] += 1
        if draw >= float(percent) / 100:
            writer.write(right.encoded())
            await writer.drain()
            return True
        self._broken[place] += 1
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        return await FAULTS[kind](Exchange(right, key, request.method, reader, writer))


async def serve(port: int) -> None:
    server, _ = await listen(HostileServer().answer, port)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    live_with_stdin()
    asyncio.run(serve(arguments.port))


if __name__ == "__main__":
    main()
