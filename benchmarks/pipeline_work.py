"""What both sides of the PPO measurement are given: weights, contexts, responses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from retro.buffer.views import Context
from retro.config import RunConfig
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, save_head
from retro.rl.experience import Policy, Rollout
from retro.rl.gradients import Trainable
from retro.training.policy.groups import Response
from retro.training.rewards.model import ModelOptions, ModelReward
from retro.types import derive_seed

ROLES = ("policy", "reference", "reward")
HEADS = ("value_head.safetensors", "reward_head.safetensors")


@dataclass(frozen=True, slots=True)
class Work:
    """One PPO step's contexts, and the responses that both sides score and learn from: whole groups, in order."""

    config: RunConfig
    contexts: Sequence[Context]
    responses: Sequence[Response]

    def rewards(self, raw: Sequence[float]) -> list[float]:
        """What the reward model's raw scores become."""
        transform = ModelReward(ModelOptions(score="sigmoid")).transform
        penalties = {"stop": 0.0, "length": self.config.ppo.missing_end_penalty}
        return [
            transform(score) - penalties[response.finish_reason]
            for response, score in zip(self.responses, raw, strict=True)
        ]


class Side(Protocol):
    """One way of doing a PPO step's model work; all else is the same code for both."""

    modules: list[nn.Module]
    """All that holds parameters."""
    trainables: list[Trainable]

    def sample(self, work: Work, number: int) -> int:
        """Draw a group of responses to every context, and forget them; returns their tokens."""
        ...

    def scores(self, work: Work) -> list[float]:
        """The reward model's raw score of each response."""
        ...

    def rollout(self, work: Work, rewards: Sequence[float]) -> Rollout:
        """Log-probabilities by policy and reference, and values."""
        ...

    def learning(self, work: Work) -> AbstractContextManager[Policy]:
        """The policy's differentiable forward pass, after :meth:`rollout`."""
        ...

    def forward_tokens(self, work: Work) -> int:
        """Tokens of one forward pass over all responses, padding included, after :meth:`rollout`."""
        ...


def write_roles(config: RunConfig, folder: Path) -> None:
    """Three adapters and two heads, all different and none without effect, drawn from the config's seed."""
    base = SharedBase.load(config.model, "cpu")
    for role in ROLES:
        seed = derive_seed(config.seed, "benchmark", role)
        base.add_role(role, config.model.lora, seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in base.role_parameters(role).items():
            if "lora_B" in name:  # zero in a new adapter
                parameter.data.normal_(0.0, 0.02, generator=generator)
        base.save_role(role, folder / role)
    for name in HEADS:
        save_head(ScalarHead(base.hidden_size, seed=derive_seed(config.seed, "benchmark", name)), folder / name)
