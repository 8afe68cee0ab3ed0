"""A server that speaks OpenAI's protocol on a local port and gives as many choices as it is told."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from retro import RetrospectiveModel

NAME = "tiny-0123abcd"
"""What it calls its model."""
DOCUMENT = {
    "opening": "You are in a room. Your task is to look.",
    "steps": [{"action": action, "observation": "you see a mug 1 . " * 30} for action in ("look", "inventory", "look")],
    "memory": ["look ."],
}
"""A trajectory too long for the export's model."""


class Server(ThreadingHTTPServer):
    """Answers ``most`` choices a request at most; knows one model."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.most = 1_000
        self.refuses_n = False
        self.usage = True
        self.reply: tuple[int, bytes] | None = None
        self.headers: dict[str, str] = {}
        """Of ``reply``."""
        self.models = ["a-base", NAME]
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What was asked after the one token of the check."""
        return self.requests[1:]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self.write(
            200 if known else 404, {"data": [{"id": name} for name in self.server.models]} if known else {"error": "?"}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        server.requests.append(body)
        server.paths.append(self.path)
        server.keys.append(self.headers["authorization"])
        if server.reply is not None:
            self.write(*server.reply)
        elif not self.path.startswith("/v1/") or body["model"] != NAME:
            self.write(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        elif server.refuses_n and body.get("n", 1) > 1:
            self.write(400, {"error": {"message": "Only one completion choice is allowed"}})
        else:
            self.write(200, self.completion(body))

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """Choices of one to four words, every third one cut."""
        texts = [f" not {(body['seed'] + place) % 8}" + " ." * (place % 3) for place in range(body.get("n", 1))]
        texts = texts[: self.server.most]
        choices = [
            {"index": place, "finish_reason": "length" if place % 3 == 2 else "stop"}
            | ({"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text})
            for place, text in enumerate(texts)
        ]
        tokens = sum(3 + place % 3 for place in range(len(texts)))
        usage = {"usage": {"prompt_tokens": 77, "completion_tokens": tokens, "total_tokens": 77 + tokens}}
        return {"id": "1", "model": NAME, "choices": choices} | (usage if self.server.usage else {})

    def write(self, status: int, body: Any) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test's output is not the server's log."""


def served(export: Path, server: Server, **options: Any) -> RetrospectiveModel:
    return RetrospectiveModel.load(export, device="cpu", server=server.url, **options)
