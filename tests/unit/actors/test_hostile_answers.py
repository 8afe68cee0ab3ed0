"""Servers that mean harm, or are broken: what an answer may cost, where it may point to, and what it may say."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from retro.actors.openai import OpenAIActor, OpenAIOptions
from retro.config import ConfigError
from retro.types import ActorError, Completion, Sampling, Usage
from retro.wire.failures import QuotaError
from retro.wire.http import MAX_ANSWER_BYTES
from tests.servers.processes import PATIENCE_SECONDS
from tests.unit.actors.api_server import CHOICE, SECRET, USAGE, Reply, Server, actor_at, error

RIGHT = json.dumps({"choices": [CHOICE], "usage": USAGE}).encode()
BOMB = b" " * (8 * MAX_ANSWER_BYTES) + RIGHT


def ask(actor: OpenAIActor, **sampling: Any) -> Completion:
    return asyncio.run(actor.complete("What now?", Sampling(**sampling)))


def raw_deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", gzip.compress(RIGHT)), ("x-gzip", gzip.compress(RIGHT)), ("deflate", zlib.compress(RIGHT))],
)
def test_a_compressed_answer_is_read(server: Server, encoding: str, body: bytes) -> None:
    server.standing = Reply(body=body, headers={"content-encoding": encoding})
    assert ask(actor_at(server, max_retries=0)).text == "go to desk 1"


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(body=BOMB), "longer than 2,097,152 bytes"),
        (Reply(body=gzip.compress(BOMB), headers={"content-encoding": "gzip"}), "longer than 2,097,152 bytes"),
        (Reply(body=zlib.compress(BOMB), headers={"content-encoding": "deflate"}), "longer than 2,097,152 bytes"),
        (Reply(body=b"{" * 65_536, endless=True), "longer than 2,097,152 bytes"),
        (Reply(body=gzip.compress(RIGHT), headers={"content-encoding": "gzip"}, endless=True), "goes on after the end"),
        (Reply(body=gzip.compress(RIGHT)[:-9], headers={"content-encoding": "gzip"}), "ends too early"),
        (Reply(body=raw_deflate(RIGHT), headers={"content-encoding": "deflate"}), "not deflate"),
        (Reply(body=b"plain text", headers={"content-encoding": "gzip"}), "not gzip"),
        (Reply(body=b"x", headers={"content-encoding": "br"}), "content-encoding 'br', which was not asked for"),
        (Reply(body=gzip.compress(gzip.compress(BOMB)), headers={"content-encoding": "gzip, gzip"}), "'gzip, gzip'"),
        (Reply(headers={f"x-{number}": "x" * 1000 for number in range(200)}), "RemoteProtocolError"),
    ],
)
def test_an_answer_beyond_the_limits_is_not_read_to_its_end(
    server: Server, status: int, reply: Reply, words: str
) -> None:
    server.standing = Reply(**{**vars(reply), "status": status})
    with pytest.raises(ActorError, match=words) as caught:
        ask(actor_at(server, max_retries=0))
    assert "\n" not in str(caught.value)


def test_a_server_sets_no_cookies(server: Server) -> None:
    server.standing = Reply(headers={"set-cookie": "a=b; Path=/"})
    seen: list[str | None] = []
    post = server.RequestHandlerClass.do_POST  # type: ignore[attr-defined]

    def spy(handler: Any) -> None:
        seen.append(handler.headers["cookie"])
        post(handler)

    server.RequestHandlerClass = type("Spy", (server.RequestHandlerClass,), {"do_POST": spy})
    actor = actor_at(server)
    for _ in range(2):
        ask(actor)
    assert seen == [None, None]


@pytest.fixture
def elsewhere(server: Server) -> Iterator[Server]:
    with Server() as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield other
        other.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_not_followed(server: Server, elsewhere: Server, status: int) -> None:
    target = f"{elsewhere.url}/chat/completions"
    server.standing = Reply(status, headers={"location": target})
    with pytest.raises(ConfigError, match=rf"redirects to '{target}' \(HTTP {status}\).*actor\.base_url"):
        ask(actor_at(server))
    assert (len(server.requests), len(elsewhere.requests)) == (1, 0)


def test_a_redirect_that_repeats_the_key_does_not_show_it(server: Server) -> None:
    server.standing = Reply(307, headers={"location": f"http://127.0.0.1:9/?key={SECRET}&more"})
    with pytest.raises(ConfigError, match=r"redirects to 'http://127.0.0.1:9/\?key=\*\*\*&more'"):
        ask(actor_at(server))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("seconds", ["3600", "86400.5"])
def test_a_long_wait_stops_the_run_with_the_time_to_go_on(server: Server, status: int, seconds: str) -> None:
    body = error("daily quota of 1,000 requests is used up")
    server.replies = [Reply(status, body, headers={"retry-after": seconds})]
    actor = actor_at(server, max_retries=0)
    with pytest.raises(QuotaError) as caught:
        ask(actor)
    words = str(caught.value)
    assert "daily quota of 1,000 requests is used up" in words
    assert f"{float(seconds):,.0f} s, until 20" in words and "run the same command again" in words
    assert "\n" not in words
    again = asyncio.wait_for(actor.complete("What now?", Sampling()), PATIENCE_SECONDS)  # a quarter of the shorter wait
    assert asyncio.run(again).text == "go to desk 1"  # and nothing is held back by it


@pytest.mark.parametrize("wait", ["1e300", "inf", "9" * 5_000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_an_absurd_wait_stops_the_run_without_a_time(server: Server, wait: str) -> None:
    server.standing = Reply(429, headers={"retry-after": wait})
    with pytest.raises(QuotaError, match="for more than a year; what was played is kept"):
        ask(actor_at(server))
    assert len(server.requests) == 1


def test_a_long_wait_of_one_call_ends_this_call(server: Server) -> None:
    server.standing = Reply(500, headers={"retry-after": "3600"})
    with pytest.raises(ActorError, match=r"HTTP 500.*asks to wait 3,600 s, .*more than 120 s"):
        ask(actor_at(server))
    assert len(server.requests) == 1


def message(**fields: Any) -> dict[str, Any]:
    reason = fields.pop("finish_reason", "stop")
    return {"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": reason}


CALL = [{"id": "1", "type": "function", "function": {"name": "go", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (message(content=None), "the text was empty"),
        (message(content=" \t "), "the text was empty"),
        (message(content="\ngo to desk 1"), "a stop string came first"),
        (message(content=None, finish_reason="content_filter"), "content filter"),
        (message(content=None, refusal="I cannot"), "content filter or the model refused"),
        (message(content="", tool_calls=CALL, finish_reason="tool_calls"), "called a tool"),
        (message(tool_calls=CALL), "called a tool"),
        (message(content="", reasoning_content="Hm", finish_reason="length"), r"actor\.max_tokens ended"),
        (message(content=None, finish_reason="length"), r"actor\.max_tokens ended"),
    ],
)
def test_an_actor_that_says_nothing_stops_the_run_with_the_reason(
    server: Server, choice: dict[str, Any], words: str
) -> None:
    server.choice = choice
    actor = actor_at(server)

    async def calls() -> list[str]:
        return [(await actor.complete("?", Sampling(stop=("\n",)))).text.strip() for _ in range(39)]

    assert asyncio.run(calls()) == [""] * 39
    with pytest.raises(ConfigError, match=rf"40 of 40 answers say nothing; most often .*{words}.*is kept"):
        ask(actor, stop=("\n",))


def test_some_silent_answers_are_one_warning(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    actor = actor_at(server)
    silent = Reply(body={"choices": [message(content=None, finish_reason="content_filter")], "usage": USAGE})

    async def calls(replies: list[Reply]) -> None:
        server.replies = replies
        for _ in range(len(replies)):
            await actor.complete("?", Sampling())

    def warnings() -> list[str]:
        return [record.message for record in caplog.records if "say nothing" in record.message]

    with caplog.at_level(logging.WARNING):
        asyncio.run(calls([Reply()] * 38 + [silent, silent]))  # 5 %
        assert not warnings()
        asyncio.run(calls([silent, Reply()] * 5))
    [warning] = warnings()
    assert "3 of 41 answers say nothing; most often the server's content filter" in warning


def test_a_silent_answer_is_not_cached(server: Server, tmp_path: Any) -> None:
    actor = actor_at(server, cache=str(tmp_path / "answers.sqlite"))
    server.replies = [Reply(body={"choices": [message(content=None)], "usage": USAGE})]
    assert [ask(actor).text, ask(actor).text] == ["", "go to desk 1"]


def test_a_text_longer_than_its_tokens_can_be_is_cut(server: Server) -> None:
    server.choice = message(content="x" * 1_000_000)
    assert ask(actor_at(server), max_tokens=3) == Completion("x" * 384, "length", Usage(11, 4))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"choices": [' + b"[" * 20_000, "nested deeper"),
        (b'{"choices": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested deeper"),
        (RIGHT[:-1] + b', "x": ' + b"9" * 5_000 + b"}", "beyond 64 bits"),
        (RIGHT[:-1] + b', "x": 1e999}', "not a finite number"),
        (RIGHT[:-1] + b', "x": NaN}', "not a finite number"),
        (json.dumps({"choices": [CHOICE], "usage": USAGE | {"prompt_tokens": 2**63}}).encode(), "beyond 64 bits"),
        (json.dumps({"choices": [CHOICE], "usage": USAGE | {"prompt_tokens": 2**40}}).encode(), "two numbers of tok"),
        (json.dumps({"choices": [CHOICE], "usage": USAGE | {"prompt_tokens": -1}}).encode(), "two numbers of tokens"),
        (json.dumps({"choices": [CHOICE], "usage": USAGE | {"prompt_tokens": True}}).encode(), "two numbers of tok"),
        (RIGHT.decode().encode("utf-16"), "not UTF-8"),
    ],
)
def test_json_that_no_one_could_keep_is_malformed(server: Server, body: bytes, words: str) -> None:
    server.standing = Reply(body=body)
    with pytest.raises(ActorError, match=f"not with completions: .*{words}") as caught:
        ask(actor_at(server, max_retries=0))
    assert len(str(caught.value)) < 800


def test_an_error_whose_code_is_anything_is_an_error(server: Server) -> None:
    nested: Any = "x"
    for _ in range(900):
        nested = [nested]
    for code in (nested, {"a": 1}, 10**4000, None):
        server.standing = Reply(400, {"error": {"message": "no", "code": code, "type": code}})
        with pytest.raises(ActorError, match=r"HTTP 400.*no"):
            ask(actor_at(server))


def test_a_zero_character_becomes_a_question_mark(server: Server) -> None:
    server.choice = message(content="go\0 to")
    assert ask(actor_at(server)).text == "go? to"


@pytest.mark.parametrize("encode", [lambda key: key.replace("s", "\\u0073"), lambda key: key[:5] + "\\n" + key[5:]])
@pytest.mark.parametrize("key", [SECRET, "abcd/123"])
def test_an_escaped_key_is_in_no_answer(server: Server, monkeypatch: pytest.MonkeyPatch, encode: Any, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    body = RIGHT.replace(b"desk 1", encode(key.replace("/", "\\/")).encode())
    server.standing = Reply(body=body)
    assert ask(actor_at(server)).text == "go to ***"
    for broken in (body[:-1], body[:-1].decode().encode("utf-16-le"), body.replace(b'"choices"', b'"c"')):
        server.standing = Reply(body=broken)
        with pytest.raises(ActorError, match=r"\*\*\*"):
            ask(actor_at(server, max_retries=0))


def test_a_shared_section_is_enough(server: Server) -> None:
    """The limits hold for an actor made from a config, whatever it says."""
    server.standing = Reply(body=BOMB)
    section = OpenAIOptions(model="m", base_url=server.url, timeout_seconds=60, max_retries=0)
    with pytest.raises(ActorError, match="longer than"):
        ask(OpenAIActor(section))
