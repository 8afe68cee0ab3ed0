"""The OpenAI-compatible actor, against a server that speaks the protocol on a local port."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from retro.actors.openai import OpenAIActor, OpenAIOptions
from retro.config import ConfigError, build
from retro.types import Actor, ActorError, Completion, Sampling, Usage
from tests.unit.actors.api_server import CHOICE, SECRET, TEXT_CHOICE, USAGE, Reply, Server, actor_at, error

SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_tokens=7, stop=("\n",), seed=2**62 + 5, session="s")
GREEDY = Sampling(max_tokens=7)


def ask(actor: OpenAIActor, prompt: Any = "What now?", sampling: Sampling = SAMPLING) -> Completion:
    return asyncio.run(actor.complete(prompt, sampling))


def ask_many(actor: OpenAIActor, count: int) -> list[Completion | BaseException]:
    async def many() -> list[Completion | BaseException]:
        return await asyncio.gather(*(actor.complete("?", SAMPLING) for _ in range(count)), return_exceptions=True)

    return asyncio.run(many())


def test_a_call_sends_what_the_sampling_says(server: Server) -> None:
    actor = actor_at(server)
    assert isinstance(actor, Actor)
    assert ask(actor) == Completion("go to desk 1", "stop", Usage(11, 4))
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
    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == [f"Bearer {SECRET}"]


def test_the_completions_endpoint_takes_the_text_as_it_is(server: Server) -> None:
    server.choice = TEXT_CHOICE
    actor = actor_at(server, endpoint="completions")
    assert ask(actor) == Completion("go to desk 1", "stop", Usage(11, 4))
    assert server.paths == ["/v1/completions"]
    assert server.requests[0]["prompt"] == "What now?"
    assert "messages" not in server.requests[0]
    with pytest.raises(ConfigError, match="use chat"):
        ask(actor, [{"role": "user", "content": "?"}])


def test_messages_go_as_they_are_and_no_stop_is_no_stop(server: Server) -> None:
    messages = [{"role": "system", "content": "Act."}, {"role": "user", "content": "What now?"}]
    ask(actor_at(server), messages, GREEDY)
    assert server.requests[0]["messages"] == messages
    assert "stop" not in server.requests[0]
    assert "seed" not in server.requests[0]


def test_a_cut_answer_is_a_length_and_an_empty_one_an_empty_text(server: Server) -> None:
    server.choice = {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "length"}
    assert ask(actor_at(server)) == Completion("", "length", Usage(11, 4))


def test_half_a_surrogate_pair_in_an_answer_becomes_a_question_mark(server: Server) -> None:
    server.choice = {**CHOICE, "message": {"content": "go \ud83d"}}
    assert ask(actor_at(server)).text == "go ?"


@pytest.mark.parametrize("text", ["go to desk 1\n", "go to desk 1\nThen I", "go to desk 1"])
def test_the_text_ends_before_the_stop_string_whatever_the_server_does(server: Server, text: str) -> None:
    server.choice = {**CHOICE, "message": {"content": text}}
    assert ask(actor_at(server)).text == "go to desk 1"


def test_one_actor_outlives_its_event_loop(server: Server) -> None:
    actor = actor_at(server, concurrency=1, requests_per_minute=6000)  # both make calls wait for one another
    for _ in range(3):
        assert [answer.text for answer in ask_many(actor, 4)] == ["go to desk 1"] * 4  # type: ignore[union-attr]


def test_requests_under_way_are_bounded_and_connections_kept(server: Server) -> None:
    server.standing = Reply(delay_seconds=0.02, company=8)
    assert len(ask_many(actor_at(server, concurrency=8), 64)) == 64
    assert server.most_under_way == 8
    assert server.connections <= 8


def test_rate_limits_and_server_errors_are_retried(server: Server) -> None:
    server.replies = [Reply(status) for status in (429, 503, 500, 408, 409)]
    assert ask(actor_at(server)).text == "go to desk 1"
    assert len(server.requests) == 6
    assert all(request == server.requests[0] for request in server.requests)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"<html>Bad gateway</html>", headers={"content-type": "text/html"}),
        Reply(body=b'{"choices": [{"index": 0, "mess'),
        Reply(body=b"\xff\xfe"),
        Reply(body=b"[" * 100_000),
        Reply(body=b""),
        Reply(body=[]),
        Reply(body={"choices": None}),
        Reply(body={"choices": [None]}),
        Reply(body={"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}),
        Reply(body={"choices": [{"message": {"content": "x"}, "finish_reason": 7}]}),
        Reply(body={"choices": [CHOICE], "usage": {"prompt_tokens": "many", "completion_tokens": -1}}),
        Reply(body={"choices": [CHOICE], "usage": [1, 2]}),
        Reply(cut=True),
        Reply(body=b"x", headers={"content-encoding": "gzip"}),
    ],
)
def test_a_malformed_answer_is_asked_for_again(server: Server, reply: Reply) -> None:
    server.replies = [reply, reply]
    assert ask(actor_at(server)) == Completion("go to desk 1", "stop", Usage(11, 4))
    assert len(server.requests) == 3


def test_a_request_has_a_time_whole(server: Server) -> None:
    actor = actor_at(server, timeout_seconds=0.3, max_retries=1)
    server.standing = Reply(drip_seconds=0.05, endless=True)  # no byte is late, and no end comes
    with pytest.raises(ActorError, match=r"0\.3 s \(actor\.timeout_seconds\)"):
        ask(actor)
    assert len(server.requests) == 2


def test_many_timeouts_take_no_connection_with_them(server: Server) -> None:
    actor = actor_at(server, timeout_seconds=0.2, max_retries=0, concurrency=4)

    async def both() -> Completion:
        server.standing = Reply(drip_seconds=0.05, endless=True)
        failed = await asyncio.gather(*(actor.complete("?", SAMPLING) for _ in range(24)), return_exceptions=True)
        assert all(isinstance(outcome, ActorError) for outcome in failed)
        server.standing = Reply()
        while True:  # on a busy machine also a right answer may take longer
            with suppress(ActorError):
                return await actor.complete("?", SAMPLING)

    assert asyncio.run(both()).text == "go to desk 1"


def test_a_server_is_kept_waiting_as_long_as_it_asks_and_so_are_all(server: Server) -> None:
    actor = actor_at(server, concurrency=1)  # the second call begins when the first has its answer
    server.replies = [Reply(429, headers={"retry-after": "0.5"})]
    ask_many(actor, 2)
    assert len(server.times) == 3
    assert min(server.times[1:]) - server.times[0] >= 0.49


@pytest.mark.parametrize(("status", "requests"), [(500, 3), (429, 3), (400, 1), (422, 1)])
def test_what_failed_for_good_is_the_actors_error_without_the_key(server: Server, status: int, requests: int) -> None:
    server.standing = Reply(status)
    with pytest.raises(ActorError, match=rf"'some-model' at http.*HTTP {status}.*you sent Bearer \*\*\*") as caught:
        ask(actor_at(server, max_retries=2))
    assert len(server.requests) == requests
    assert caught.value.__context__ is None and caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(401), "OPENAI_API_KEY was refused"),
        (Reply(403), "may not be used"),
        (Reply(404), "no such model"),
        (Reply(429, error("You exceeded your current quota", "insufficient_quota")), "nothing is left to pay with"),
        (Reply(402, error("Insufficient balance")), "nothing is left to pay with"),
        (Reply(400, error("Unsupported parameter: 'max_tokens'", "unsupported_parameter")), r"actor\.limit_parameter"),
    ],
)
def test_what_every_call_would_meet_is_the_users_mistake(server: Server, reply: Reply, words: str) -> None:
    server.standing = reply
    with pytest.raises(ConfigError, match=words) as caught:
        ask(actor_at(server))
    assert SECRET not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        error("This model's maximum context length is 4096 tokens. However, you requested 5000", None),
        error("Please shorten", "context_length_exceeded"),
        error("the request exceeds the available context size", None, "exceed_context_size_error"),
    ],
)
def test_a_prompt_that_is_too_long_names_the_remedy(server: Server, body: Any) -> None:
    server.standing = Reply(400, body)
    with pytest.raises(ActorError, match=r"actor\.context_tokens and actor\.tokenizer"):
        ask(actor_at(server))
    assert len(server.requests) == 1


@pytest.mark.parametrize(("body", "words"), [({"choices": []}, "no choices"), (error("overloaded"), "overloaded")])
def test_an_answer_without_choices_is_the_actors_error(server: Server, body: Any, words: str) -> None:
    server.standing = Reply(body=body)
    with pytest.raises(ActorError, match=words):
        ask(actor_at(server, max_retries=1))
    assert len(server.requests) == 2


def test_a_url_that_gave_nothing_but_pages_is_the_users_mistake(server: Server) -> None:
    page = Reply(body=b"<html>Welcome</html>", headers={"content-type": "text/html"})
    server.standing = page
    actor = actor_at(server, max_retries=1)
    with pytest.raises(ConfigError, match="/v1"):
        ask(actor)
    server.standing = Reply()
    ask(actor)
    server.standing = page
    with pytest.raises(ActorError, match="not with completions"):
        ask(actor)


def test_no_server_is_the_actors_error(server: Server) -> None:
    section = OpenAIOptions(model="m", base_url="http://127.0.0.1:9/v1", max_retries=1)
    with pytest.raises(ActorError, match=r"APIConnectionError.*ConnectError"):
        ask(OpenAIActor(section))


def test_the_key_is_needed_for_openai_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        OpenAIActor(OpenAIOptions(model="m"))
    assert ask(actor_at(server)).text == "go to desk 1"
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        OpenAIActor(OpenAIOptions(model="m"))


def test_a_missing_usage_is_estimated_and_told_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.usage = None
    actor = actor_at(server)
    assert ask(actor, "x" * 401).usage == Usage(101, 3)  # a token for four bytes, rounded up
    ask(actor)
    assert [record.message for record in caplog.records if "estimated" in record.message] == [
        "the actor's server does not tell what answers cost: tokens are estimated by bytes"
    ]
    assert actor.budget.spent == Usage(101 + 3, 6)
    server.usage = USAGE | {"completion_tokens": None}
    assert ask(actor).usage == Usage(3, 3)


def test_tokens_are_reserved_by_an_estimate_and_corrected_by_the_usage(server: Server) -> None:
    server.usage = {"prompt_tokens": 50, "completion_tokens": 4}
    actor = actor_at(server, tokens_per_minute=6000)  # 100 at once, then 98.35 a second

    async def in_turn() -> None:
        for _ in range(5):
            await actor.complete("?", SAMPLING)

    begun = time.monotonic()
    asyncio.run(in_turn())
    # estimated at 8 tokens they would all start at once; four of 54, and 8 for the fifth, need 124 more than the 100
    assert server.times[4] - begun >= 1.2


def test_a_spent_budget_stops_before_the_next_call(server: Server) -> None:
    from retro.actors.budget import BudgetExceededError

    actor = actor_at(server, budget={"tokens": 40})

    async def many() -> list[Completion | BaseException]:
        calls = [actor.complete("?" * 44, SAMPLING) for _ in range(10)]  # 18 tokens are reserved for each, 15 used
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(many())
    answered = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    stopped = [outcome for outcome in outcomes if isinstance(outcome, BudgetExceededError)]
    assert (len(answered), len(stopped), len(server.requests)) == (3, 7, 3)
    assert "45 of 40 tokens are spent" in str(stopped[0])
    assert "actor.budget.tokens" in str(stopped[0])


def test_what_was_spent_before_counts(server: Server, tmp_path: Path) -> None:
    from retro.actors.budget import BudgetExceededError

    ledger = tmp_path / "actor_usage.jsonl"
    ledger.write_text('{"prompt_tokens": 60000, "completion_tokens": 20000}\n')
    priced = {"money": 1.0, "prompt_price": 10.0, "completion_price": 20.0}
    section = OpenAIOptions(model="some-model", base_url=server.url, budget=priced)
    actor = OpenAIActor(section, ledger)
    with pytest.raises(BudgetExceededError, match=r"1 of 1 is spent"):
        ask(actor)
    assert not server.requests


def test_equal_requests_at_temperature_0_are_sent_once(server: Server, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache" / "answers.sqlite")
    first = ask(actor_at(server, cache=cache), sampling=GREEDY)
    again = actor_at(server, cache=cache)
    assert ask(again, sampling=GREEDY) == first == Completion("go to desk 1", "stop", Usage(11, 4))
    assert again.budget.spent == Usage()
    assert len(server.requests) == 1
    ask(again, "Another?", GREEDY)
    ask(actor_at(server, cache=cache, extra_body={"top_k": 5}), sampling=GREEDY)
    ask(again)
    ask(again)
    assert len(server.requests) == 5


def test_failures_are_not_cached(server: Server, tmp_path: Path) -> None:
    server.replies = [Reply(400)]
    actor = actor_at(server, cache=str(tmp_path / "answers.sqlite"))
    with pytest.raises(ActorError):
        ask(actor, sampling=GREEDY)
    assert ask(actor, sampling=GREEDY).text == "go to desk 1"


def test_the_prompts_limit_is_the_context_less_the_answer(server: Server, tiny_model_dir: Path) -> None:
    assert actor_at(server).prompt_limit is None
    settings: dict[str, Any] = {"context_tokens": 200, "max_tokens": 50, "tokenizer": str(tiny_model_dir)}
    limit = actor_at(server, endpoint="completions", **settings).prompt_limit
    assert limit is not None
    assert (limit.max_tokens, limit.count(""), limit.key) == (150, 0, "actor.context_tokens")
    assert limit.count("put mug 1 in desk 1") > 3
    chat = actor_at(server, **settings).prompt_limit
    assert chat is not None and chat.count("") == 64
    with pytest.raises(ConfigError, match=r"actor\.max_tokens=200 leaves no room"):
        actor_at(server, **settings | {"max_tokens": 200})
    with pytest.raises(ConfigError, match=r"actor\.tokenizer"):
        actor_at(server, **settings | {"tokenizer": str(tiny_model_dir / "nowhere")})


def test_the_loops_end_closes_the_connections(server: Server) -> None:
    async def closed_by_hand() -> None:
        actor = actor_at(server)
        await actor.complete("?", SAMPLING)
        await actor.aclose()

    gc.collect()  # what others left open is not this test's
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        ask_many(actor_at(server), 8)
        asyncio.run(closed_by_hand())
        gc.collect()
    assert not [str(warning.message) for warning in told]


def test_the_config_makes_it(server: Server) -> None:
    made = build(OpenAIOptions(model="m", base_url=server.url, temperature=0.5))
    assert isinstance(made, OpenAIActor)
    assert json.loads(json.dumps(server.requests)) == []


def test_before_a_run_it_is_asked_whether_anybody_is_there(server: Server) -> None:
    asyncio.run(actor_at(server).check())  # whatever it answers to a list of models: somebody is there
    assert not server.requests
    free = OpenAIOptions(model="some-model", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match=r":9/v1: nobody listens there: start the server") as caught:
        asyncio.run(OpenAIActor(free).check())
    assert caught.value.__context__ is None


def test_a_refused_key_is_told_before_a_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", lambda handler: handler.send_error(401), raising=False)
    with pytest.raises(ConfigError, match="the key in OPENAI_API_KEY was refused") as caught:
        asyncio.run(actor_at(server).check())
    assert caught.value.__context__ is None
    assert SECRET not in str(caught.value)
