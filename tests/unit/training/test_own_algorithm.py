"""An algorithm and a reward of somebody else's in the policy stage, without a change to the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retro.buffer.store import ReplayBuffer
from retro.config import PositiveFloat, Section
from retro.stage import run_stage
from retro.training.policy.groups import Group
from retro.training.policy.stage import STAGE as POLICY
from retro.training.rewards.base import Reward
from tests.policy_stage import metrics, policy_config, rollouts, write_models
from tests.rated_groups import fill


class BrevityOptions(Section):
    longest: PositiveFloat = 10.0


class Brevity(Reward):
    """1 − tokens / longest: nobody plays for it."""

    Options = BrevityOptions

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        longest = self.options.longest
        return [[1 - len(response.ids) / longest for response in group.responses] for group in groups]


def test_best_of_group_imitation_learns_from_a_reward_of_ones_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Of each group the shortest response is imitated: responses become shorter."""
    term = {"kind": f"{__name__}:Brevity", "options": {"longest": 8}}
    config = policy_config(
        tiny_model_dir,
        tmp_path,
        "run",
        algorithm="examples.extensions.best_of_group:BestOfGroup",
        options={"passes": 2},
        reward=term,
        steps=6,
        group=4,
        missing_end_penalty=0.0,
        validation_contexts=0,
    )
    with ReplayBuffer(config.buffer_url) as buffer:
        fill(buffer)
    write_models(config)
    folder = run_stage(POLICY, config)
    lines = metrics(config)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["score"] > lines[0]["score"] + 0.1
    assert all("gain" not in line and line["grad_norm/policy"] > 0 for line in lines)
    for row in rollouts(config, 1):
        assert row["score"] == pytest.approx(1 - row["tokens"] / 8) and row["retry_return"] is None
    before = load_file(config.run_dir / "sft" / "adapter" / "adapter_model.safetensors")
    after = load_file(folder / "best" / "adapter_model.safetensors")
    assert not all(torch.equal(after[name], before[name]) for name in before)
    assert not (folder / "best" / "value_head.safetensors").exists()
    assert {path.name for path in (folder / "checkpoint-6").iterdir()} >= {"optimiser.safetensors", "state.json"}
