"""The OpenAI-compatible actor, against a server that speaks the protocol on a local port."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from retro.actors.openai import OpenAIActor
from retro.config import ActorSection, ConfigError
from retro.types import Actor, ActorError, Completion, Sampling, Usage

SECRET = "sk-this-must-not-leak"


class Server(ThreadingHTTPServer):
    """Answers chat completions; ``statuses`` are answered first, one a request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict] = []
        self.keys: list[str] = []
        self.statuses: list[int] = []
        self.page: str | None = None
        self.choices: list[dict] = [
            {"index": 0, "message": {"role": "assistant", "content": "go to desk 1"}, "finish_reason": "stop"}
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers["authorization"])
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": self.server.choices,
            "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
        }
        error = {"error": {"message": f"you sent {self.headers['authorization']}", "type": "x", "code": None}}
        payload = json.dumps(answer if status == 200 else error).encode()
        payload = self.server.page.encode() if self.server.page else payload
        self.send_response(status)
        self.send_header("content-type", "text/html" if self.server.page else "application/json")
        self.send_header("retry-after-ms", "1")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test's output is not the server's log."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def actor_at(server: Server, **settings) -> OpenAIActor:
    return OpenAIActor(ActorSection(kind="openai", model="some-model", base_url=server.url), **settings)


SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_tokens=7, stop=("\n",), seed=2**62 + 5, session="s")


def test_a_call_sends_what_the_sampling_says(server):
    actor = actor_at(server)
    assert isinstance(actor, Actor)
    completion = asyncio.run(actor.complete("What now?", SAMPLING))
    assert completion == Completion("go to desk 1", "stop", Usage(11, 4))
    assert server.requests == [
        {
            "model": "some-model",
            "messages": [{"role": "user", "content": "What now?"}],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 7,
            "seed": 5,
            "stop": ["\n"],
        }
    ]
    assert server.keys == [f"Bearer {SECRET}"]


def test_messages_go_as_they_are_and_no_stop_is_no_stop(server):
    messages = [{"role": "system", "content": "Act."}, {"role": "user", "content": "What now?"}]
    asyncio.run(actor_at(server).complete(messages, Sampling()))
    assert server.requests[0]["messages"] == messages
    assert "stop" not in server.requests[0]


def test_a_cut_answer_is_a_length_and_an_empty_one_an_empty_text(server):
    server.choices[0]["finish_reason"] = "length"
    server.choices[0]["message"]["content"] = None
    assert asyncio.run(actor_at(server).complete("?", SAMPLING)) == Completion("", "length", Usage(11, 4))


def test_one_actor_outlives_its_event_loop(server):
    actor = actor_at(server)
    texts = [asyncio.run(actor.complete("?", SAMPLING)).text for _ in range(3)]
    assert texts == ["go to desk 1"] * 3


def test_many_calls_at_once(server):
    actor = actor_at(server)

    async def many():
        return await asyncio.gather(*(actor.complete("?", SAMPLING) for _ in range(64)))

    assert len(asyncio.run(many())) == 64


def test_rate_limits_and_server_errors_are_retried(server):
    server.statuses = [429, 503, 500]
    assert asyncio.run(actor_at(server, max_retries=3).complete("?", SAMPLING)).text == "go to desk 1"
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("statuses", "name"),
    [([500] * 3, "InternalServerError"), ([429] * 3, "RateLimitError"), ([400], "BadRequestError")],
)
def test_what_failed_for_good_is_the_actors_error_without_the_key(server, statuses, name):
    server.statuses = statuses
    with pytest.raises(ActorError, match=f"'some-model' at http.*{name}") as caught:
        asyncio.run(actor_at(server, max_retries=2).complete("?", SAMPLING))
    assert SECRET not in str(caught.value)
    assert "***" in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("status", "words"), [(401, "OPENAI_API_KEY was refused"), (403, "may not"), (404, "no such model")]
)
def test_what_every_call_would_meet_is_the_users_mistake(server, status, words):
    server.statuses = [status]
    with pytest.raises(ConfigError, match=words) as caught:
        asyncio.run(actor_at(server).complete("?", SAMPLING))
    assert SECRET not in str(caught.value)


def test_an_answer_without_choices_is_the_actors_error(server):
    server.choices = []
    with pytest.raises(ActorError, match="no choices"):
        asyncio.run(actor_at(server).complete("?", SAMPLING))


def test_a_url_that_is_no_api_is_the_users_mistake(server):
    server.page = "<html>Welcome</html>"
    with pytest.raises(ConfigError, match="/v1"):
        asyncio.run(actor_at(server).complete("?", SAMPLING))


def test_no_server_is_the_actors_error(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    section = ActorSection(kind="openai", model="m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ActorError, match="APIConnectionError"):
        asyncio.run(OpenAIActor(section, max_retries=0).complete("?", SAMPLING))


def test_the_key_is_needed_for_openai_alone(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        OpenAIActor(ActorSection(kind="openai", model="m"))
    assert asyncio.run(actor_at(server).complete("?", SAMPLING)).text == "go to desk 1"
