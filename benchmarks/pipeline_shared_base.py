"""The project's own PPO step: one base with its roles, prompts shared by their responses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import nn

from benchmarks.pipeline_work import HEADS, ROLES, Work
from retro.buffer.views import Context
from retro.config import RunConfig
from retro.models.adapters import SharedBase
from retro.models.heads import load_head
from retro.rl.experience import Policy, Rollout
from retro.rl.ppo import Trainable
from retro.training.ppo_models import Batch, PpoModels
from retro.training.ppo_rewards import Response, Scored
from retro.types import Sampling, derive_seed


class SharedBaseSide:
    """What the stage ``ppo`` runs on, loaded from the folder of :func:`benchmarks.pipeline_work.write_roles`."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        base = SharedBase.load(config.model, "cpu")
        for role in ROLES:
            base.load_role(role, folder / role, trainable=role == "policy")
        value_head, reward_head = (load_head(folder / name) for name in HEADS)
        self._config = config
        self._models = PpoModels(config, base, value_head, reward_head.requires_grad_(False))
        self._batch: Batch | None = None
        self.modules: list[nn.Module] = [base.model, value_head, reward_head]
        self.trainables = [
            Trainable("policy", list(self._models.policy_parameters.values())),
            Trainable("value", list(self._models.value_parameters.values())),
        ]

    def draw(self, contexts: Sequence[Context], number: int) -> list[Response]:
        """A group of responses to every context."""
        group = range(self._config.ppo.group)
        seeds = [[derive_seed(self._config.seed, number, place, i) for i in group] for place in range(len(contexts))]
        groups = self._models.sample(contexts, Sampling(1.0, 1.0, self._config.model.max_new_tokens), seeds)
        return [
            Response(place, index, tuple(written.ids), tuple(written.log_probs), text, written.finish_reason)
            for place, answers in enumerate(groups)
            for index, (written, text) in enumerate(answers)
        ]

    def sample(self, work: Work, number: int) -> int:
        return sum(len(response.ids) for response in self.draw(work.contexts, number))

    def scores(self, work: Work) -> list[float]:
        return self._models.scores(work.contexts, work.responses)

    def rollout(self, work: Work, scored: Scored) -> Rollout:
        self._batch = self._models.batch(work.contexts, work.responses)
        return self._models.rollout(self._batch, scored)

    def learning(self, work: Work) -> AbstractContextManager[Policy]:
        assert self._batch is not None  # the packing of this step's rollout is used again, as in the stage
        return self._models.learning(self._batch)

    def forward_tokens(self, work: Work) -> int:
        assert self._batch is not None
        return sum(packed.input_ids.numel() for packed in self._batch.packed.values())
