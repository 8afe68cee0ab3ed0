"""Run folders that are ready for the policy stage, on a tiny random model, and what it left in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from retro.config import RunConfig, parse_config
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, save_head
from tests.builders import run_config

QUICK = {
    "steps": 4,
    "contexts": 4,
    "group": 2,
    "epochs": 2,
    "learning_rate": 1e-2,
    "checkpoint_every": 2,
    "validate_every": 2,
    "validation_contexts": 2,
}
"""A policy stage of four short steps."""


def policy_config(model: Path, runs: Path, name: str, actor: dict[str, Any] | None = None, **ppo: Any) -> RunConfig:
    """A config of :data:`QUICK` on the tiny model in ``model``; keyword arguments are keys of ``ppo``."""
    return run_config(
        runs,
        model,
        name=name,
        environment={"name": "household", "tasks": {"train": 6, "validation": 2, "test": 0}},
        actor=actor or {},
        model={"lora": {"r": 2, "alpha": 4.0}},
        collect={"attempts": 2, "group": 1, "controls": 0, "splits": ["train", "validation"]},
        ppo={**QUICK, **ppo},
    )


def prepare(model: Path, runs: Path, fill: Callable[[RunConfig], object]) -> Path:
    """A run folder as the stages before leave it; ``fill`` writes the buffer."""
    config = policy_config(model, runs, "prepared")
    fill(config)
    write_models(config)
    return config.run_dir


def fresh_run(prepared: Path, model: Path, runs: Path, name: str = "run", **ppo: Any) -> RunConfig:
    """A copy of the folder that :func:`prepare` made, ready for the stage; keyword arguments are keys of ``ppo``."""
    shutil.copytree(prepared, runs / name)
    return policy_config(model, runs, name, **ppo)


def sampled_by_vllm(config: RunConfig, url: str) -> RunConfig:
    """The same run, whose reflections the vLLM server at ``url`` samples."""
    model = {**config.model.model_dump(), "generator": {"kind": "vllm", "base_url": url, "concurrency": 8}}
    return parse_config({**config.model_dump(), "model": model}, "test")


def interrupt(config: RunConfig, checkpoint: int) -> None:
    """Leave the finished stage as a kill after ``checkpoint`` and before the next one would."""
    folder = config.run_dir / "ppo"
    for path in folder.glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) > checkpoint:
            shutil.rmtree(path)
    manifest = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(manifest | {"status": "running", "outputs": {}}))


def write_models(config: RunConfig) -> None:
    """Random adapters and a random head, as the stages ``sft`` and ``reward`` would leave theirs."""
    base = SharedBase.load(config.model, torch.device("cpu"))
    for seed, role in enumerate(("sft", "reward")):
        base.add_role(role, config.model.lora, seed=1)
        with torch.no_grad():
            for parameter in base.role_parameters(role).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        base.save_role(role, config.run_dir / role / "adapter")
    save_head(ScalarHead(base.hidden_size, seed=3), config.run_dir / "reward" / "head.safetensors")
    scale = {"score_mean": 0.2, "score_std": 0.5, "loss": "bce"}
    (config.run_dir / "reward" / "reward.json").write_text(json.dumps(scale))


def metrics(config: RunConfig) -> list[dict[str, Any]]:
    """The stage's lines of ``metrics.jsonl`` without their times."""
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "stage" and not key.startswith("seconds")}
        for line in lines
        if line["stage"] == "ppo"
    ]


def rollouts(config: RunConfig, step: int) -> list[dict[str, Any]]:
    """The rows of ``rollouts/step-N.jsonl``."""
    lines = (config.run_dir / "ppo" / "rollouts" / f"step-{step}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
