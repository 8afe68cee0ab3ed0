"""`accelerate launch scripts/train_X.py`: one process and two give the same losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.running import ROOT, Run, environment


def launch(processes: int, stage: str, run: Run, *overrides: str) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if processes == 1:
        command += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--cpu"]
    else:
        command += ["--config_file", "configs/accelerate/cpu-2.yaml", "--main_process_port", "0"]
    command += [f"scripts/train_{stage}.py", "--config", str(run.config), f"runs={run.folder.parent}", *overrides]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for noise in ("Loading weights", "gemm_4bit"):  # a bar of transformers', a warning of bitsandbytes'
        assert noise not in done.stderr


def reflections(run: Run, step: int) -> list[str]:
    lines = (run.folder / "ppo" / "rollouts" / f"step-{step}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["reflection"] for line in lines]


@pytest.mark.parametrize(("stage", "processes"), [("sft", 1), ("sft", 2), ("reward", 2), ("ppo", 2)])
def test_a_launched_stage_learns_what_the_command_learns(
    whole_run: Run, tmp_path: Path, stage: str, processes: int
) -> None:
    run = whole_run.without(stage, tmp_path)
    launch(processes, stage, run)
    assert run.manifest(stage)["processes"] == processes
    ours, theirs = run.metrics(stage), whole_run.metrics(stage)
    assert len(ours) == len(theirs) >= 3
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        assert line["step"] == other["step"]
        # transformers averages its validation figures over batches, which two processes cut otherwise
        by_batch = {"validation_loss", "validation_token_accuracy"}
        # a part of the tokens beyond a threshold: rounding, which differs by processor, may take a token across it
        parts = {key for key in line if key.endswith("_fraction")}
        numbers = {key for key in line if isinstance(line[key], int | float)} - by_batch - parts
        assert {key: line[key] for key in numbers} == pytest.approx(
            {key: other[key] for key in numbers}, rel=2e-3, abs=2e-4, nan_ok=True
        )
        for key in parts:
            assert line[key] == pytest.approx(other[key], abs=2.5 / (other["responses"] * other["length"]))
    if stage == "ppo":
        for step in (1, 4):
            assert reflections(run, step) == reflections(whole_run, step)


def test_a_launch_tells_a_mistake_in_one_line(whole_run: Run, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "scripts/train_ppo.py",
        "--config",
        str(whole_run.config),
        f"runs={tmp_path}",
        "ppo.stpes=1",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'steps'?" in done.stderr
    assert "Traceback" not in done.stderr
