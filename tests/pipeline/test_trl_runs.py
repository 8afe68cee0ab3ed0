"""DPO and GRPO through the real commands: export and evaluation take their policy as that of PPO; two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftModel

from retro.config import load_config
from retro.models.loading import load_base
from tests.pipeline.running import Run, retro
from tests.pipeline.test_launch import command, in_forks, reflections

QUICK = ("ppo.steps=2", "ppo.minibatches=1", "ppo.contexts=4", "ppo.checkpoint_every=2", "evaluate.attempts=2")
SAME = {"step", "loss", "grad_norm", "kl_loss", "score", "gain", "validation_return"}
"""What two processes must log as one does; TRL's other figures are means of each process's means."""
ALGORITHMS = {
    "dpo": ("ppo.algorithm=dpo",),
    "grpo-mix": ("ppo.algorithm=grpo",),
}
"""Arm → overrides."""


@pytest.fixture(scope="module")
def learnt(request: pytest.FixtureRequest, whole_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """An arm's name, and the whole run with that algorithm in the place of PPO."""
    run = whole_run.without("ppo", tmp_path_factory.mktemp(request.param))
    retro(*run.command(*QUICK, *ALGORITHMS[request.param], f"evaluate.arms=[{request.param}]", "--from", "ppo"))
    return request.param, run


@pytest.mark.parametrize("learnt", ALGORITHMS, indirect=True)
def test_export_and_evaluation_take_their_policy(learnt: tuple[str, Run]) -> None:
    arm, run = learnt
    assert run.manifest("ppo")["outputs"].keys() == {"best", "last"}
    exported = run.folder / "export" / "adapter"
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (exported / file).read_bytes() == (run.folder / "ppo" / "best" / file).read_bytes()
    config = load_config(run.folder / "config.yaml")
    PeftModel.from_pretrained(load_base(config.model, "cpu"), exported)
    results = json.loads((run.folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert list(results["arms"]) == [arm]


@pytest.mark.parametrize("learnt", ["grpo-mix"], indirect=True)
def test_two_processes_learn_what_one_learns(learnt: tuple[str, Run], whole_run: Run, tmp_path: Path) -> None:
    arm, run = learnt
    two = whole_run.without("ppo", tmp_path)
    done = in_forks(command("cpu-2", "ppo", two, *QUICK, *ALGORITHMS[arm]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert two.manifest("ppo")["processes"] == 2
    ours, theirs = two.metrics("ppo"), run.metrics("ppo")
    assert len(ours) == len(theirs) >= 4
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() & SAME:
            assert line[key] == pytest.approx(other[key], rel=2e-3, abs=2e-4), key
    for step in (1, 2):
        assert reflections(two, step) == reflections(run, step)
