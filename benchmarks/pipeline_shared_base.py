"""The project's own PPO step: one base with its roles, prompts shared by their responses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path

from torch import nn

from benchmarks.pipeline_work import HEADS, ROLES, Work
from retro.buffer.views import Context
from retro.config import RunConfig
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, load_head
from retro.retrospective.reward_model import RewardModel
from retro.rl.experience import Policy, Rollout
from retro.rl.gradients import Trainable
from retro.training.policy.groups import Group, Response
from retro.training.policy.models import Packs, PolicyModels
from retro.types import Sampling, derive_seed


class SharedBaseSide:
    """What the stage ``ppo`` runs on.

    Args:
        base: with the roles of :data:`benchmarks.pipeline_work.ROLES`, the policy's trainable.
        kind: of models; one of its own may have prompts that no episode was played for.
        copies: how many times each prompt is asked, its group shared out among the copies: 1 is what the stage does,
            ``ppo.group`` gives every response a prompt and a prefill of its own, and shares nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        base: SharedBase,
        value_head: ScalarHead,
        reward_head: ScalarHead,
        kind: type[PolicyModels] = PolicyModels,
        copies: int = 1,
    ) -> None:
        self._config, self._copies = config, copies
        self._models = kind(
            config, base, value_head, RewardModel(base, reward_head.requires_grad_(False), config.ppo.token_budget)
        )
        self._packs: Packs | None = None
        self.modules: list[nn.Module] = [base.model, value_head, reward_head]
        self.trainables = [
            Trainable(part, list(parameters.values())) for part, parameters in self._models.parts.items()
        ]

    @classmethod
    def load(
        cls, config: RunConfig, folder: Path, kind: type[PolicyModels] = PolicyModels, copies: int = 1
    ) -> SharedBaseSide:
        """From the folder of :func:`benchmarks.pipeline_work.write_roles`, on the CPU."""
        base = SharedBase.load(config.model, "cpu")
        for role in ROLES:
            base.load_role(role, folder / role, trainable=role == "policy")
        value_head, reward_head = (load_head(folder / name) for name in HEADS)
        return cls(config, base, value_head, reward_head, kind, copies)

    def draw(self, contexts: Sequence[Context], number: int) -> list[Response]:
        """A group of responses to every context."""
        group, share = self._config.ppo.group, self._config.ppo.group // self._copies
        seeds = [
            [derive_seed(self._config.seed, number, place, i) for i in range(copy * share, (copy + 1) * share)]
            for place in range(len(contexts))
            for copy in range(self._copies)
        ]
        sampling = Sampling(1.0, 1.0, self._config.model.max_new_tokens)
        groups = self._models.sample(self._asked(contexts), sampling, seeds, number - 1)
        drawn = [answer for answers in groups for answer in answers]
        return [
            Response(i // group, i % group, tuple(written.ids), tuple(written.log_probs), text, written.finish_reason)
            for i, (written, text) in enumerate(drawn)
        ]

    def _asked(self, contexts: Sequence[Context]) -> list[Context]:
        return [context for context in contexts for _ in range(self._copies)]

    def sample(self, work: Work, number: int) -> int:
        return sum(len(response.ids) for response in self.draw(work.contexts, number))

    def _groups(self, work: Work) -> list[Group]:
        asked = self._asked(work.contexts)
        size = len(work.responses) // len(asked)
        return [
            Group(slot, context, tuple(work.responses[slot * size : (slot + 1) * size]))
            for slot, context in enumerate(asked)
        ]

    def scores(self, work: Work) -> list[float]:
        return list(chain(*self._models.scores(self._groups(work))))

    def rollout(self, work: Work, rewards: Sequence[float]) -> Rollout:
        self._packs = self._models.packs(self._groups(work))
        return self._models.rollout(self._packs, work.responses, rewards)

    def learning(self, work: Work) -> AbstractContextManager[Policy]:
        assert self._packs is not None  # the packing of this step's rollout is used again, as in the stage
        return self._models.learning(self._packs, entropy_gradient=self._config.ppo.entropy_coefficient > 0)

    def forward_tokens(self, work: Work) -> int:
        assert self._packs is not None
        return sum(packed.input_ids.numel() for packed in self._packs.packed.values())
