"""A server that answers as vLLM 0.32 does: a base, adapters that are loaded and unloaded, samples in token ids.

It samples with our own engine from the folders that it is given, so a right client finds the samples and
log-probabilities of its own model. Its refusals have vLLM's words and statuses.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from retro.models.adapters import SharedBase
from retro.retrospective.generator import EngineGenerator
from retro.types import Sampling

Reply = tuple[int, dict[str, Any]]


class VllmServer(ThreadingHTTPServer):
    """``failures`` are given first, one a completion; None cuts the connection."""

    daemon_threads = True

    def __init__(self, base: SharedBase, max_lora_rank: int = 16) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.base, self.max_lora_rank = base, max_lora_rank
        self.name = str(base.model.config.name_or_path)
        self.lora = True
        self.runtime_loading = True
        self.generator: EngineGenerator | None = None
        self.adapters: dict[str, str] = {}
        self.failures: list[Reply | None] = []
        self.shift = 0.0
        """Added to every log-probability."""
        self.bodies: list[dict[str, Any]] = []
        self.posted: list[str] = []
        """Each change of the adapters: ``+name`` or ``-name``."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def restart(self) -> None:
        """Forget the adapters that were loaded at run time."""
        self.adapters.clear()

    def models(self) -> dict[str, Any]:
        own = {"id": self.name, "object": "model", "root": self.name, "parent": None, "max_model_len": 512}
        loaded = ({"id": name, "root": path, "parent": self.name} for name, path in self.adapters.items())
        return {"object": "list", "data": [own, *loaded]}

    def answer(self, path: str, body: dict[str, Any]) -> Reply | None:
        if path == "/v1/completions":
            self.bodies.append(body)
            return self.failures.pop(0) if self.failures else self.completion(body)
        if not self.runtime_loading:
            return 404, {"detail": "Not Found"}
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            self.posted.append(f"-{name}")
            if self.adapters.pop(name, None) is None:
                return refusal(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
            return 200, {}
        if name in self.adapters:
            said = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            return refusal(400, f"{said}'load_inplace' to True.", "InvalidUserInput")
        return self.load(name, body["lora_path"])

    def load(self, name: str, path: str) -> Reply:
        config = Path(path) / "adapter_config.json"
        if not self.lora:
            return unusable("LoRA is not enabled. Use --enable-lora to enable LoRA.")
        if not config.is_file():
            return refusal(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        rank = json.loads(config.read_text())["r"]
        if rank > self.max_lora_rank:
            return unusable(f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.")
        self.base.load_role(name, Path(path), trainable=False)
        self.generator = None  # the first role wraps the model
        self.adapters[name] = path
        self.posted.append(f"+{name}")
        return 200, {}

    def completion(self, body: dict[str, Any]) -> Reply:
        name = body["model"]
        if name != self.name and name not in self.adapters:
            return refusal(404, f"The model `{name}` does not exist.", "NotFoundError")
        generator = self.generator = self.generator or EngineGenerator(self.base)
        generator.use(None if name == self.name else name, "")
        stop = tuple(body.get("stop", ()))
        sampling = Sampling(body["temperature"], body["top_p"], body["max_tokens"], stop)
        [[drawn]] = generator.sample([body["prompt"]], 1, sampling, [[body.get("seed", 0)]])
        tokens = [f"token_id:{token}" for token in drawn.ids]
        log_probs = {"tokens": tokens, "token_logprobs": [value + self.shift for value in drawn.log_probs]}
        choice = {"index": 0, "text": "", "logprobs": log_probs, "finish_reason": drawn.finish_reason}
        return 200, {"object": "text_completion", "model": name, "choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    server: VllmServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.write(200, self.server.models())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            reply = self.server.answer(self.path, body)
        if reply is None:
            self.close_connection = True
        else:
            self.write(*reply)

    def write(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test's output is not the server's log."""


def refusal(status: int, message: str, kind: str) -> Reply:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


def unusable(said: str) -> Reply:
    """The engine could not load an adapter."""
    message = f"Call to add_lora method failed: Worker failed with error '{said}', please check the stack trace above"
    return refusal(500, message, "InternalServerError")


@contextmanager
def vllm_server(base: SharedBase) -> Iterator[VllmServer]:
    """A server of ``base``, running."""
    with VllmServer(base) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
