"""Reflections that another server writes: ``retro serve --server``."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro.serving.limits import Limits
from retro.serving.service import Service
from tests.unit.agent.choices_server import NAME, Server, served
from tests.unit.serving.conftest import about, running

ERROR = b'{"error": {"message": "the prompt was: You are in a room"}}'


def test_the_other_server_writes_and_this_one_chooses(server: Server, served_export: Path) -> None:
    model = served(served_export, server)
    with running(Service(model, NAME, Limits(), candidates=3)) as client:
        body = about("You are in a room.", n=4)
        first, again = (client.post("/v1/reflections", json=body).raise_for_status().json() for _ in range(2))
    assert [request["n"] for request in server.asked] == [4, 4]
    assert all("You are in a room." in request["prompt"] for request in server.asked)
    assert first["score"] == max(candidate["score"] for candidate in first["candidates"])
    assert (first["text"], first["usage"]) == (again["text"], again["usage"])
    assert first["usage"]["prompt_tokens"] == 77


@pytest.mark.parametrize("status", [400, 500])
def test_what_the_other_server_says_stays_here(
    server: Server, served_export: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro.retrospective.served.MAX_RETRIES", 0)
    model = served(served_export, server)
    server.reply = (status, ERROR)
    with running(Service(model, NAME, Limits(), candidates=3)) as client:
        answer = client.post("/v1/reflections", json=about("You are in a room."))
        server.reply = None
        assert client.post("/v1/reflections", json=about("You are in a room.")).status_code == 200
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "model_server_failed")
    assert "You are in" not in answer.text and server.url not in answer.text
