"""`accelerate launch scripts/train_X.py`: one process and two give the same losses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.running import ROOT, Run, environment


def command(layout: str | None, stage: str, run: Run, *overrides: str, script: str | None = None) -> list[str]:
    """``layout``: a file of configs/accelerate, or None for one process."""
    script = script or f"scripts/train_{stage}.py"
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if layout is None:
        command += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--cpu"]
    else:
        command += ["--config_file", f"configs/accelerate/{layout}.yaml", "--main_process_port", "0"]
    return [*command, script, "--config", str(run.config), f"runs={run.folder.parent}", *overrides]


def launch(layout: str | None, stage: str, run: Run, script: str | None = None) -> str:
    """What the launch prints."""
    done = subprocess.run(
        command(layout, stage, run, script=script),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for noise in ("Loading weights", "gemm_4bit"):  # a bar of transformers', a warning of bitsandbytes'
        assert noise not in done.stderr
    return done.stdout + done.stderr


def reflections(run: Run, step: int) -> list[str]:
    lines = (run.folder / "ppo" / "rollouts" / f"step-{step}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["reflection"] for line in lines]


@pytest.mark.parametrize(
    ("stage", "layout"),
    [
        ("sft", None),
        ("sft", "cpu-2"),
        ("reward", "cpu-2"),
        ("ppo", "cpu-2"),
        ("reward", "fsdp2-cpu-2"),
        ("ppo", "fsdp2-cpu-2"),
    ],
)
def test_a_launched_stage_learns_what_the_command_learns(
    whole_run: Run, tmp_path: Path, stage: str, layout: str | None
) -> None:
    run = whole_run.without(stage, tmp_path)
    screen = launch(layout, stage, run)
    assert run.manifest(stage)["processes"] == (2 if layout else 1)
    assert ("in pieces over 2 processes" in screen) == (layout == "fsdp2-cpu-2")
    require_same(stage, run, whole_run)


def test_a_supervised_stage_in_pieces_learns_what_the_command_learns(whole_run: Run, tmp_path: Path) -> None:
    run = whole_run.without("sft", tmp_path)
    launch("fsdp2-cpu-2", "sft", run, script="tests/pipeline/fsdp_on_cpu.py")
    require_same("sft", run, whole_run)
    ours, theirs = (load_file(r.folder / "sft" / "adapter" / "adapter_model.safetensors") for r in (run, whole_run))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_a_killed_stage_in_pieces_goes_on_in_another_layout(whole_run: Run, tmp_path: Path) -> None:
    run = whole_run.without("ppo", tmp_path)
    process = subprocess.Popen(
        command("fsdp2-cpu-2", "ppo", run),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    sign = run.folder / "ppo" / "checkpoint-2"
    deadline = time.monotonic() + 240
    try:
        while process.poll() is None and not sign.is_dir():
            assert time.monotonic() < deadline, "no sign of work"
            time.sleep(0.002)
        assert process.poll() is None, "the stage was over before it could be killed"
    finally:
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for doomed in (process, *workers):  # the launcher's end alone would not end them
            doomed.kill()
        process.wait()
        psutil.wait_procs(workers)
    assert run.manifest("ppo")["status"] == "running"
    shutil.copytree(run.folder, tmp_path / "again" / run.folder.name)
    again = Run(run.config, tmp_path / "again" / run.folder.name)
    assert "in pieces over 2 processes" in launch("fsdp2-cpu-2", "ppo", run)
    launch(None, "ppo", again)  # its checkpoints are those of one process
    for resumed in (run, again):
        assert resumed.manifest("ppo")["status"] == "complete"
        require_same("ppo", resumed, whole_run)


@pytest.mark.parametrize(
    ("stage", "quantization", "message"),
    [
        ("ppo", "none", "ppo does not run under DeepSpeed"),
        ("reward", "none", "reward does not run under DeepSpeed"),
        ("sft", "nf4", "cannot be cut in pieces"),
    ],
)
def test_a_launch_under_deepspeed_says_what_to_take_instead(
    whole_run: Run, stage: str, quantization: str, message: str
) -> None:
    script = [sys.executable, f"scripts/train_{stage}.py", "--config", str(whole_run.config)]
    done = subprocess.run(
        [*script, f"runs={whole_run.folder.parent}", f"model.quantization={quantization}"],
        cwd=ROOT,
        env=environment(ACCELERATE_USE_DEEPSPEED="true"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert whole_run.manifest(stage)["status"] == "complete"


def require_same(stage: str, run: Run, whole_run: Run) -> None:
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
    mistaken = [sys.executable, "scripts/train_ppo.py", "--config", str(whole_run.config), "ppo.stpes=1"]
    done = subprocess.run(mistaken, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'steps'?" in done.stderr
    assert "Traceback" not in done.stderr
