"""The keys of AdamW in the config are what the optimiser of every stage runs with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from retro.config import RunConfig, parse_config
from retro.stage import run_stage
from retro.training.policy.stage import STAGE as PPO
from retro.training.reward import STAGE as REWARD
from retro.training.sft import STAGE as SFT

MakeConfig = Callable[..., RunConfig]
ADAM = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}
SMALL = {"steps": 1, "contexts": 2, "group": 2, "epochs": 1, "validation_contexts": 0, "adam": ADAM}


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> set[tuple[float, ...]]:
    """(β₁, β₂, ε) of every step that an AdamW makes."""
    found: set[tuple[float, ...]] = set()
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        found.update((*group["betas"], group["eps"]) for group in self.param_groups)
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    return found


def test_every_stage_runs_adamw_as_the_config_says(
    filled_config: MakeConfig, optimised: set[tuple[float, ...]]
) -> None:
    config = filled_config(sft={"max_steps": 1, "adam": ADAM}, reward={"max_steps": 1, "adam": ADAM}, ppo=SMALL)
    for stage in (SFT, REWARD, PPO):
        optimised.clear()
        run_stage(stage, config)
        assert optimised == {(0.8, 0.95, 1e-6)}, stage.name
    for algorithm in ("dpo", "grpo"):
        optimised.clear()
        run_stage(PPO, parse_config({**config.model_dump(), "ppo": {**SMALL, "algorithm": algorithm}}, "test"))
        assert optimised == {(0.8, 0.95, 1e-6)}, algorithm


def test_the_defaults_are_torchs() -> None:
    defaults = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).defaults
    for section in (RunConfig().sft, RunConfig().reward, RunConfig().ppo):
        assert (section.adam.betas, section.adam.epsilon) == (defaults["betas"], defaults["eps"])
