"""The examples for other libraries, each in an environment of its own, with `retro serve`: `make test-examples`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from retro.buffer import ReplayBuffer
from retro.types import Episode
from tests.pipeline.running import ROOT, environment
from tests.servers.processes import server_process
from tests.servers.retro_serve import retro_serve
from tests.tiny_export import write_export

KEY = "a-key-for-the-examples"


@dataclass(frozen=True)
class Servers:
    retro: str
    log: Path
    player: str
    buffer: Path

    def run(self, script: str, python: str) -> str:
        """What the example prints, in an environment that does not know this one."""
        done = subprocess.run(
            [python, f"examples/{script}", self.retro, "rule"],
            cwd=ROOT,
            env={name: value for name, value in self.environment().items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment(self) -> dict[str, str]:
        keys = {"OPENAI_BASE_URL": f"{self.player}/v1", "OPENAI_API_KEY": "none", "RETRO_API_KEY": KEY}
        return environment(**keys, LITELLM_LOCAL_MODEL_COST_MAP="True")  # otherwise DSPy's client asks the network

    def retries(self) -> dict[str, Episode]:
        with ReplayBuffer(f"sqlite:///{self.buffer / 'buffer.sqlite'}", create=False) as buffer:
            return {episode.id: episode for episode in buffer.episodes() if episode.reflection is not None}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """`retro serve` with the quickstart's base, and a server with the agents' own model."""
    folder = tmp_path_factory.mktemp("examples")
    export = write_export(folder / "export", ROOT / "data" / "quickstart" / "retrospective", "tiny-0")
    log, buffer = folder / "retro.log", folder / "served"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_API_KEY", KEY)
        with (
            retro_serve(export, buffer, log) as retro,
            server_process("tests.servers.tool_player", [], folder / "player.log", "/health") as player,
        ):
            yield Servers(retro, log, player, buffer)


def with_python(variable: str, *values: str) -> object:
    """Parameters of a test that is skipped where the variable does not name an interpreter."""
    reason = f"{variable} does not name the Python of an environment with that library: make test-examples"
    skip = pytest.mark.skipif(variable not in os.environ, reason=reason)
    return pytest.param(os.environ.get(variable), *values, marks=skip, id=values[0])


@pytest.mark.parametrize(
    ("python", "script", "mark"),
    [
        with_python("RETRO_EXAMPLES_OPENAI_AGENTS", "openai_agents.py", "\nreflect {"),
        with_python("RETRO_EXAMPLES_LANGGRAPH", "langgraph_agent.py", "\n  reflection: "),
    ],
)
def test_an_agent_reflects_by_mcp_and_reports(servers: Servers, python: str, script: str, mark: str) -> None:
    before = servers.retries()
    shown = servers.run(script, python)
    retries = [episode for id, episode in servers.retries().items() if id not in before]
    assert len(retries) == shown.count(mark) > 0
    assert all(episode.reflection is not None and episode.reflection.text in shown for episode in retries)
    assert sum(episode.success for episode in retries) == ("I found it" in shown or "return 1" in shown)


@pytest.mark.parametrize(("python", "script"), [with_python("RETRO_EXAMPLES_GEPA", "gepa_reflection.py")])
def test_gepa_evolves_an_instruction_by_reflections(servers: Servers, python: str, script: str) -> None:
    shown = servers.run(script, python)
    assert "\nscore 0.00: Name the three places" in shown
    answered = [line for line in servers.log.read_text(encoding="utf-8").splitlines() if "/v1/chat/completions" in line]
    assert answered and all('"status": 200' in line for line in answered)
