"""kill -9 in each stage, then the same command: it completes, and what was finished is there once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.running import Run, kill_itself, retro


def midway(run: Run) -> dict[str, tuple[str, str]]:
    """When a stage has done a part of its work."""
    folder = run.folder
    return {
        "sft": ("exists", str(folder / "sft" / "checkpoints" / "checkpoint-2" / "trainer_state.json")),
        "reward": ("exists", str(folder / "reward" / "checkpoint-2")),
        "ppo": ("exists", str(folder / "ppo" / "checkpoint-2")),
        "export": ("exists", str(folder / "export")),
        "evaluate": ("episodes", "3"),
    }


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "evaluate"])
def test_a_killed_stage_gives_what_an_unbroken_one_gives(whole_run: Run, tmp_path: Path, stage: str) -> None:
    run = whole_run.without(stage, tmp_path)
    command = run.command("--from", stage, "--until", stage)
    kill_itself(midway(run)[stage], *command)
    assert run.manifest(stage)["status"] == "running"
    done = retro(*command)
    assert "was interrupted" in done.stdout
    assert run.manifest(stage)["status"] == "complete"
    if stage == "evaluate":
        assert _results(run) == _results(whole_run)
    else:
        assert run.metrics(stage) == whole_run.metrics(stage)


def test_a_killed_export_completes(whole_run: Run, tmp_path: Path) -> None:
    run = whole_run.without("export", tmp_path)
    command = run.command("--from", "export", "--until", "export")
    kill_itself(midway(run)["export"], *command)
    retro(*command)
    assert run.manifest("export")["status"] == "complete"
    for file in ("adapter/adapter_model.safetensors", "reward/head.safetensors"):
        assert (run.folder / "export" / file).read_bytes() == (whole_run.folder / "export" / file).read_bytes()


def test_a_killed_collection_has_every_finished_episode_once(whole_run: Run, trials: Path, tmp_path: Path) -> None:
    run = Run(whole_run.config, tmp_path / whole_run.folder.name)
    retro("buffer", "import", "jsonl", str(trials), "--buffer", str(run.folder))
    with run.buffer() as buffer:
        imported = buffer.count()
    command = run.command("--until", "collect")
    kill_itself(("episodes", "3"), *command)
    with run.buffer() as buffer:
        finished = {episode.id: episode for episode in buffer.episodes()}
    assert len(finished) == imported + 3
    retro(*command)
    with run.buffer() as buffer, whole_run.buffer() as unbroken:
        assert all(buffer.get(id) == episode for id, episode in finished.items())
        assert buffer.count() == unbroken.count()
        assert buffer.digest() == unbroken.digest()


def _results(run: Run) -> dict[str, object]:
    results = json.loads((run.folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    return {key: results[key] for key in ("tasks", "attempts", "arms", "comparisons")}
