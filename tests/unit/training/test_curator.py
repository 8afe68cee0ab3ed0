"""A bank that a language model curates, from a real server: its answers are kept, and nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retro.config import RunConfig
from retro.memory.bank import BankFacts
from retro.stage import run_stage
from retro.training.memory import STAGE as MEMORY
from retro.training.rounds import ActorFailedError
from tests.unit.actors.api_server import SECRET, Reply, Server
from tests.unit.actors.conftest import server

__all__ = ["server"]

ANSWER = json.dumps([{"op": "add", "episode": 1, "text": "clean it at the sink first."}])


def config_for(make: Callable[..., RunConfig], server: Server, name: str, **curator: Any) -> RunConfig:
    server.choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    section = {"kind": "openai", "model": "m", "base_url": server.url, "max_tokens": 500, **curator}
    return make(name=name, memory={"kind": "playbook", "curator": section, "retries_per_request": 10})


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in (folder / "content").rglob("*") if file.is_file()
    }


def test_a_fold_that_was_stopped_asks_nothing_twice(filled_config: Callable[..., RunConfig], server: Server) -> None:
    whole = config_for(filled_config, server, "whole")
    folder = run_stage(MEMORY, whole)
    asked = [request["messages"] for request in server.requests]
    assert len(asked) == 5  # 48 retries on train tasks
    facts = BankFacts.read(folder)
    assert facts.entries == 1
    assert facts.curator_tokens == 5 * 15
    assert "lesson of this episode" in str(asked[0])
    broken = config_for(filled_config, server, "broken")
    server.requests.clear()
    server.replies = [Reply(), Reply(), Reply(400)]
    with pytest.raises(ActorFailedError, match=r"memory\.curator: .*what it has answered is kept"):
        run_stage(MEMORY, broken)
    assert len(server.requests) == 3
    answers = broken.run_dir / "curator" / "answers.jsonl"
    answers.write_text(answers.read_text() + '{"key": "half a li')
    server.requests.clear()
    assert files(run_stage(MEMORY, broken)) == files(folder)
    assert [request["messages"] for request in server.requests] == asked[2:]
    assert BankFacts.read(broken.run_dir / "memory") == facts
    for file in (path for path in broken.run_dir.rglob("*") if path.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file


def test_an_answer_that_was_cut_is_named(
    filled_config: Callable[..., RunConfig], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(filled_config, server, "cut")
    server.choice = {**server.choice, "finish_reason": "length"}
    run_stage(MEMORY, config)
    assert "memory.curator: an answer was cut at max_tokens=500" in caplog.text
