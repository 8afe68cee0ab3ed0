"""A server that speaks OpenAI's protocol on a local port, and fails as it is told."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from retro.actors.openai import OpenAIActor, OpenAIOptions

SECRET = "sk-this-must-not-leak-4f1c"
HEADERS = {"content-type": "application/json"}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": "go to desk 1"}, "finish_reason": "stop"}
TEXT_CHOICE = {"index": 0, "text": "go to desk 1", "finish_reason": "stop"}
USAGE = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}


@dataclass
class Reply:
    """One answer: ``body`` None is a right one (200), or an error that repeats the key (else)."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    company: int = 0
    """No answer before so many requests were under way at once (or a minute is over)."""
    drip_seconds: float = 0.0
    """Before each byte of the body."""
    cut: bool = False
    """Half of the body, and the connection is gone."""
    endless: bool = False
    """The body again and again, without a length."""


class Server(ThreadingHTTPServer):
    """``replies`` are given first, one a request; then ``standing``."""

    request_queue_size = 512
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.standing = Reply()
        self.choice: dict[str, Any] = CHOICE
        self.usage: dict[str, Any] | None = USAGE
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.under_way = 0
        self.most_under_way = 0
        self.in_company = threading.Event()
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.requests.append(body)
            server.paths.append(self.path)
            server.keys.append(self.headers["authorization"])
            server.times.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            reply = server.replies.pop(0) if server.replies else server.standing
            if server.most_under_way >= reply.company:
                server.in_company.set()
        try:
            server.in_company.wait(60)
            time.sleep(reply.delay_seconds)
            self.answer(reply, body)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, reply: Reply, request: dict[str, Any]) -> None:
        payload = self.payload(reply, request)
        self.send_response(reply.status)
        length = {"connection": "close"} if reply.endless else {"content-length": str(len(payload))}
        for name, value in (HEADERS | reply.headers | length).items():
            self.send_header(name, value)
        self.end_headers()
        if reply.cut:
            self.wfile.write(payload[: len(payload) // 2])
            self.close_connection = True
        else:
            self.write(payload, reply)

    def write(self, payload: bytes, reply: Reply) -> None:
        size = 1 if reply.drip_seconds else max(1, len(payload))
        pieces = [payload[place : place + size] for place in range(0, len(payload), size)]
        try:
            for piece in itertools.cycle(pieces) if reply.endless else pieces:
                time.sleep(reply.drip_seconds)
                self.wfile.write(piece)
        except ConnectionError:  # the client has had enough
            self.close_connection = True

    def payload(self, reply: Reply, request: dict[str, Any]) -> bytes:
        if isinstance(reply.body, bytes):
            return reply.body
        body = reply.body
        if body is None and reply.status == 200:
            body = {"id": "1", "object": "x", "created": 0, "model": request["model"], "choices": [self.server.choice]}
            body |= {"usage": self.server.usage} if self.server.usage else {}
        elif body is None:
            body = error(f"you sent {self.headers['authorization']}")
        return json.dumps(body).encode()

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test's output is not the server's log."""


def error(message: str, code: str | None = None, type_: str = "x") -> dict[str, Any]:
    """An error's body, as OpenAI writes it."""
    return {"error": {"message": message, "type": type_, "code": code, "param": None}}


def actor_at(server: Server, **settings: Any) -> OpenAIActor:
    """An actor that asks ``server``; settings are those of its section."""
    return OpenAIActor(OpenAIOptions(model="some-model", base_url=server.url, **settings))
