"""The example of an agent that knows the server by its URL alone."""

from __future__ import annotations

import runpy
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from retro.buffer import ReplayBuffer
from retro.serving.limits import Limits
from tests.pipeline.running import ROOT
from tests.unit.serving.conftest import KEY, held_service, recording, running


def test_the_plain_agent_asks_and_reports(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RETRO_API_KEY", KEY)
    agent = runpy.run_path(str(ROOT / "examples" / "plain_agent.py"))
    with (
        ReplayBuffer(f"sqlite:///{tmp_path}/buffer.sqlite") as buffer,
        running(recording(model, buffer), KEY) as client,
    ):
        agent["main"](str(client.base_url).rstrip("/"), attempts=3)
        shown = capsys.readouterr().out.splitlines()
        played = [line for line in shown if line.startswith("attempt")]
        recorded = list(buffer.episodes())
    assert 1 < len(played) <= 3
    assert len(shown) == 2 * len(played) - 1
    assert len(recorded) == len(played)
    assert all(episode.trajectory.steps for episode in recorded)
    retries = [episode for episode in recorded if episode.reflection is not None]
    assert {f"  reflection: {episode.reflection.text}" for episode in retries} <= set(shown)
    assert len(retries) == len(played) - 1


@pytest.fixture
def main():
    return runpy.run_path(str(ROOT / "examples" / "plain_agent.py"))["main"]


def test_a_reflection_that_was_not_recorded_is_told(held, main, capsys):
    held.free.set()
    with running(held_service(held, Limits())) as client:
        main(str(client.base_url).rstrip("/"), attempts=2)
    assert "without --buffer" in capsys.readouterr().out


def test_a_wrong_key_is_told_in_the_servers_words(client, main, monkeypatch):
    monkeypatch.setenv("RETRO_API_KEY", "another")
    with pytest.raises(SystemExit, match="/v1/reflections: The API key is wrong: "):
        main(str(client.base_url).rstrip("/"))


class Stranger(BaseHTTPRequestHandler):
    """Another program's server."""

    def do_POST(self):
        self.send_response(501)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *args):
        pass


def test_a_wrong_port_is_told(main):
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(SystemExit, match="status 501, which is not from retro serve"):
            main(url)
    with pytest.raises(SystemExit, match="retro serve does not answer there: "):
        main(url)
