"""The key is nowhere but in the header: not in what a run keeps, logs or raises, whatever the server repeats."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retro.actors.openai import OpenAIActor, OpenAIOptions
from retro.config import ConfigError, RunConfig
from retro.stage import run_stage
from retro.training.collect import STAGE as COLLECT
from retro.training.collect import ActorFailedError
from retro.types import ActorError, Sampling
from tests.unit.actors.api_server import CHOICE, SECRET, Reply, Server, actor_at, error

ECHO = {"x-echo": f"Bearer {SECRET}"}
FAILURES = [
    Reply(429, headers=ECHO | {"retry-after-ms": "1"}),
    Reply(500, f"<html>{SECRET}</html>".encode(), headers=ECHO),
    Reply(503, error(f"you sent {SECRET}"), headers=ECHO),
    Reply(200, f"<html>{SECRET}</html>".encode(), headers=ECHO),
    Reply(200, {"choices": [], "you sent": SECRET}, headers=ECHO),
    Reply(200, headers=ECHO, cut=True),
    Reply(400, error("x" * 495 + SECRET), headers=ECHO),
    Reply(200, headers=ECHO, drip_seconds=0.05),
]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that anyone logs, from DEBUG on."""
    text, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


def told(error: BaseException) -> str:
    """The error with its chain, everything that hangs on it, and the local variables on its way here."""
    chain = [error]
    for item in chain:
        chain += [other for other in (item.__cause__, item.__context__) if other is not None and other not in chain]
    shown = [f"{item!r} {vars(item)}" for item in chain]
    for item in chain:
        for frame, _ in traceback.walk_tb(item.__traceback__):
            if frame.f_globals["__name__"] != __name__:  # the test itself knows the key
                shown += [f"{name}={value!r}" for name, value in frame.f_locals.items()]
    return "\n".join(shown)


def test_a_collection_at_a_server_that_repeats_the_key_keeps_it_nowhere(
    server: Server, make_config: Callable[..., RunConfig], tmp_path: Path, log: io.StringIO
) -> None:
    server.replies = [Reply(headers=ECHO), *FAILURES * 4]
    server.standing = Reply(headers=ECHO)
    server.choice = {**CHOICE, "message": {"content": f"look {SECRET}"}}
    actor: dict[str, Any] = {
        "kind": "openai",
        "base_url": server.url,
        "timeout_seconds": 0.5,
        "concurrency": 4,
        "cache": str(tmp_path / "run" / "answers.sqlite"),
    }
    config = make_config(
        actor=actor,
        environment={"tasks": {"train": 4, "validation": 1, "test": 1}},
        collect={"attempts": 2, "group": 1},
    )
    with pytest.raises(ActorFailedError) as caught:
        run_stage(COLLECT, config)
    server.replies = []
    patient = config.actor.model_copy(update={"timeout_seconds": 120.0})
    run_stage(COLLECT, config.model_copy(update={"actor": patient}))  # what had failed is played, and the rest is there
    assert SECRET not in told(caught.value)
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {"config.yaml", "buffer.sqlite", "answers.sqlite", "collect.json"} <= {file.name for file in kept}
    assert any(b"look ***" in content for content in kept.values())  # it was said, and cleaned
    assert not [file for file, content in kept.items() if SECRET.encode() in content]
    assert "Bearer ***" in log.getvalue()
    assert SECRET not in log.getvalue()


@pytest.mark.parametrize("reply", FAILURES)
def test_no_error_holds_the_key(server: Server, reply: Reply, log: io.StringIO) -> None:
    server.standing = reply
    actor = actor_at(server, max_retries=0, timeout_seconds=0.3)
    with pytest.raises((ActorError, ConfigError)) as caught:
        asyncio.run(actor.complete("?", Sampling()))
    assert SECRET not in told(caught.value)
    assert SECRET[:12] not in str(caught.value)
    assert SECRET not in log.getvalue()


def test_the_actor_does_not_show_its_key(server: Server) -> None:
    actor = actor_at(server)
    asyncio.run(actor.complete("?", Sampling()))
    assert SECRET not in repr(actor) + str(actor)


@pytest.mark.parametrize("key", ["sk-two words-4f1c", "sk-line\n-4f1c", "sk-schlüssel-4f1c"])
def test_a_key_that_no_header_takes_is_refused_without_repeating_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds") as caught:
        actor_at(server)
    assert "4f1c" not in str(caught.value)


def test_blanks_around_a_key_are_no_part_of_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {SECRET}\n")
    asyncio.run(actor_at(server).complete("?", Sampling()))
    assert server.keys == [f"Bearer {SECRET}"]


def test_a_word_for_a_server_of_ones_own_stays_in_answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "desk")
    section = OpenAIOptions(model="m", base_url=server.url)
    assert asyncio.run(OpenAIActor(section).complete("?", Sampling())).text == "go to desk 1"
