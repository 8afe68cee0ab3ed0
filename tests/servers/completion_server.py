"""An OpenAI-compatible server that is fast: a scripted player of the household behind real HTTP.

    python -m tests.servers.completion_server --port 8000 [--delay-seconds 0.2]

``/v1/chat/completions`` and ``/v1/completions``. The answer is what a searching player might do next, chosen by a hash
of the prompt's text and the seed, and depends on nothing else. GET ``/health`` tells how many completions it has given.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
from typing import Any

from tests.servers.processes import live_with_stdin
from tests.servers.wire import Request, Response, listen

_NAME = re.compile(r"[a-z]+ \d+")
_CLOSED = ("cabinet", "drawer")


class CompletionServer:
    """Answers completions after ``delay_seconds``."""

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        self.completions = 0

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if (request.method, request.path) == ("GET", "/health"):
            response = Response.of_json({"status": "ok", "completions": self.completions})
        else:
            response = self.completion(request)
            self.completions += response.status == 200
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
        writer.write(response.encoded())
        await writer.drain()
        return True

    def completion(self, request: Request) -> Response:
        """The answer to one POST, or a refusal in OpenAI's words."""
        chat = request.path == "/v1/chat/completions"
        if not chat and request.path != "/v1/completions":
            return _refusal(404, f"there is no {request.path}")
        try:
            body = json.loads(request.body)
            prompt = body["messages"][-1]["content"] if chat else body["prompt"]
            seed, limit = int(body.get("seed", 0)), int(body["max_tokens"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return _refusal(400, f"not a request for a completion: {type(error).__name__}: {error}")
        words = f" {next_action(prompt, seed)}\n".split(" ")
        text, finish = " ".join(words[: limit + 1]), "stop" if len(words) <= limit + 1 else "length"
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        prompt_tokens, completion_tokens = len(prompt.split()), min(len(words) - 1, limit)
        return Response.of_json(
            {
                "id": f"completion-{self.completions}",
                "object": "chat.completion" if chat else "text_completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": finish, "logprobs": None, **said}],
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                },
            }
        )


def next_action(prompt: str, seed: int = 0) -> str:
    """What someone who searches a household might do next; the same for the same prompt and seed."""
    opening, _, played = prompt.partition("\ntask:")
    places = _NAME.findall(opening.rpartition("places:")[2])
    actions = [f"go to {place}" for place in places] or ["look"]
    *_, last_action, seen = ["", "", *played.rstrip("> \n").splitlines()]
    here = last_action.removeprefix("> ").partition(" ")[2].removeprefix("to ")
    if seen == "it is closed":
        actions = [f"open {here}"]
    elif seen.startswith("you see ") and seen != "you see nothing":
        actions = [f"take {thing} from {here}" for thing in _NAME.findall(seen)] + actions[:1]
    draw = hashlib.blake2b(f"{seed}\n{prompt}".encode(), digest_size=8).digest()
    return actions[int.from_bytes(draw, "big") % len(actions)]


def _refusal(status: int, message: str) -> Response:
    return Response.of_json({"error": {"message": message, "type": "invalid_request_error", "code": None}}, status)


async def serve(port: int, delay_seconds: float) -> None:
    server, _ = await listen(CompletionServer(delay_seconds).answer, port)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    live_with_stdin()
    asyncio.run(serve(arguments.port, arguments.delay_seconds))


if __name__ == "__main__":
    main()
