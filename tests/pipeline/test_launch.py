"""`accelerate launch scripts/train_X.py`: one process and two give the same losses."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline import forks
from tests.pipeline.running import Run, environment

Launch = Callable[[list[str]], subprocess.CompletedProcess[str]]


def launcher(layout: str | None) -> list[str]:
    """``accelerate launch`` for an interpreter. ``layout``: a file of configs/accelerate, or None for one process."""
    command = ["-m", "accelerate.commands.launch"]
    if layout is None:
        one = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        return [*command, *one, "--cpu"]
    return [*command, "--config_file", f"configs/accelerate/{layout}.yaml", "--main_process_port", "0"]


def command(layout: str | None, stage: str, run: Run, *overrides: str, script: str | None = None) -> list[str]:
    script = script or f"scripts/train_{stage}.py"
    return [*launcher(layout), script, "--config", str(run.config), f"runs={run.folder.parent}", *overrides]


def in_forks(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The launch in a fork, which starts its processes as it always does: the interpreter that it takes is a fork's."""
    return forks.run(arguments, environment(PYTHON_EXEC=str(forks.stand_in())))


def in_interpreters(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The launch in a fork, whose processes are interpreters, each with its own seed of hashes."""
    return forks.run(arguments, environment())


def launch(layout: str | None, stage: str, run: Run, script: str | None = None, run_it: Launch = in_forks) -> str:
    """What the launch prints."""
    done = run_it(command(layout, stage, run, script=script))
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
        ("reward", "fsdp2-cpu-2"),  # the policy stage in pieces: below, killed on the way
    ],
)
def test_a_launched_stage_learns_what_the_command_learns(
    whole_run: Run, tmp_path: Path, stage: str, layout: str | None
) -> None:
    run = whole_run.without(stage, tmp_path)
    screen = launch(layout, stage, run, run_it=in_interpreters if (stage, layout) == ("sft", "cpu-2") else in_forks)
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
    dying = ["tests/pipeline/dying.py", "exists", str(run.folder / "ppo" / "checkpoint-2")]
    killed = in_forks([*launcher("fsdp2-cpu-2"), *dying, "ppo", str(run.config), f"runs={run.folder.parent}"])
    assert killed.returncode == 1
    assert "SIGKILL" in killed.stderr
    assert run.manifest("ppo")["status"] == "running"
    shutil.copytree(run.folder, tmp_path / "again" / run.folder.name)
    again = Run(run.config, tmp_path / "again" / run.folder.name)
    assert "in pieces over 2 processes" in launch("fsdp2-cpu-2", "ppo", run)
    launch(None, "ppo", again)  # its checkpoints are those of one process
    for resumed in (run, again):
        assert resumed.manifest("ppo")["status"] == "complete"
        require_same("ppo", resumed, whole_run)
    assert [resumed.manifest("ppo")["processes"] for resumed in (run, again)] == [2, 1]


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
    overrides = (f"runs={whole_run.folder.parent}", f"model.quantization={quantization}")
    done = forks.run(
        [f"scripts/train_{stage}.py", "--config", str(whole_run.config), *overrides],
        environment(ACCELERATE_USE_DEEPSPEED="true"),
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
    done = forks.run(["scripts/train_ppo.py", "--config", str(whole_run.config), "ppo.stpes=1"], environment())
    assert done.returncode == 2
    assert "did you mean 'steps'?" in done.stderr
    assert "Traceback" not in done.stderr
