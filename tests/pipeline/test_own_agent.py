"""``docs/your-own-agent.md``: its commands run in order, as they stand there, in a copy of what they name.

Three things differ: the packages are installed already, the server's port is a free one, and commands other than the
server run in forks (:mod:`tests.pipeline.forks`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pipeline.running import BIN, ROOT, on_path
from tests.servers.processes import free_port, wait_until_healthy
from tests.servers.transformers_serve import missing_packages

PAGE = (ROOT / "docs" / "your-own-agent.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh(?: background)?)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def run(command: str, folder: Path, tools: Path) -> str:
    done = subprocess.run(
        command, shell=True, cwd=folder, env=on_path(tools, BIN), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def serve(command: str, folder: Path, port: int) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            f"exec {command}", shell=True, cwd=folder, env=on_path(BIN), stdout=output, stderr=output
        )
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(bool(missing_packages()), reason="pip install 'retro[serving]'")
def test_the_pages_commands_run_as_written(tmp_path: Path, tools: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("scripts", "docs", "retro"):
        (tmp_path / name).symlink_to(ROOT / name)
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("sh background") == 1
    before = [block for _, block in BLOCKS[: kinds.index("sh background")]]
    [serving] = [block for kind, block in BLOCKS if kind == "sh background"]
    after = [block for _, block in BLOCKS[kinds.index("sh background") + 1 :]]

    for block in before:
        run(block.replace("pip install 'retro[serving]'\n", ""), tmp_path, tools)
    assert serving.split()[:3] == ["transformers", "serve", "runs/random-model"]
    port = free_port()
    rehearsal = tmp_path / "examples" / "own_agent" / "rehearsal.yaml"
    for file in (rehearsal, rehearsal.with_name("config.yaml")):
        text = file.read_text(encoding="utf-8")
        assert "http://localhost:8000/v1" in text
        file.write_text(text.replace(":8000", f":{port}"), encoding="utf-8")
    with serve(serving.replace("8000", str(port)), tmp_path, port):
        screens = [run(block, tmp_path, tools) for block in after]

    results = json.loads((tmp_path / "runs/notices-rehearsal/evaluation/results.json").read_text(encoding="utf-8"))
    assert results["tasks"] == 4
    assert all(arm["tokens_per_task"] > 0 for arm in results["arms"].values())
    assert re.search(r"attempt 1: return 0\.\d\d", screens[0])
    assert "retro run" not in screens[1] and "episodes" in screens[1]  # the dry run
    [logs] = [screen for screen in screens if "first attempts" in screen]
    assert "80 first attempts" in logs and "retries with a reflection: 131 (61 better" in logs
    assert (tmp_path / "runs/desk/export/adapter").is_dir()
