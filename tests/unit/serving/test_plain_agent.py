"""The example of an agent that knows the server by its URL alone."""

from __future__ import annotations

import runpy

from retro.buffer import ReplayBuffer
from tests.pipeline.running import ROOT
from tests.unit.serving.conftest import KEY, recording, running


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
    assert len(shown) == 2 * len(played) if "return 0" in played[-1] else 2 * len(played) - 1
    retries = [episode for episode in recorded if episode.reflection is not None]
    assert {f"  reflection: {episode.reflection.text}" for episode in retries} <= set(shown)
    assert len(retries) == len(played) - 1
