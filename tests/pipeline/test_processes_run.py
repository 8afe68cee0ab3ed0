"""The runner ``processes`` in the real commands, with a local actor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.running import Run, retro


@pytest.fixture
def run(whole_run: Run, trials: Path, tmp_path: Path) -> Run:
    """Like ``whole_run`` before it began."""
    run = Run(whole_run.config, tmp_path / whole_run.folder.name)
    retro("buffer", "import", "jsonl", str(trials), "--buffer", str(run.folder))
    return run


def test_another_process_fills_the_buffer_that_this_one_fills(run: Run, whole_run: Run) -> None:
    collect = run.command("--until", "collect")
    retro(*collect, "runner={kind: processes, workers: 1}")
    assert digest(run) == digest(whole_run)
    assert "collect: up to date" in retro(*collect).stderr, "the runner decides nothing"


@pytest.mark.slow
def test_two_processes_make_the_run_that_one_makes(run: Run, whole_run: Run) -> None:
    retro(*run.command("runner={kind: processes, workers: 2}"))
    assert digest(run) == digest(whole_run)
    assert run.metrics("ppo") == whole_run.metrics("ppo")
    assert arms(run) == arms(whole_run)


def digest(run: Run) -> str:
    with run.buffer() as buffer:
        return buffer.digest()


def arms(run: Run) -> dict[str, object]:
    results = json.loads((run.folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    return dict(results["arms"])
