"""The reward model: an adapter on the shared base and a scalar head, which score reflections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, load_head, save_head
from retro.models.packing import last_token_scores, pack, plan, tree_tokens
from retro.models.rounds import Rounds
from retro.retrospective.encoding import Encoder
from retro.retrospective.reward_files import RewardFiles
from retro.types import Reflection, ReflectionRequest

ROLE = "reward"
"""The name of the adapter on the shared base."""
SCORED_TOKENS = 16384
"""Tokens of one scoring pass; a single group may be longer."""


class RewardModel:
    """Scores responses to prompts. The scores have no scale (Bradley-Terry) or are logits (cross-entropy).

    Args:
        base: The shared base with the role :data:`ROLE`.
        head: Maps the hidden state of a response's last token to its score.
        budget: Tokens of one forward pass; a longer group is scored alone. None means no limit.
        most: The most groups in one forward pass.
    """

    def __init__(
        self, base: SharedBase, head: ScalarHead, budget: int | None = SCORED_TOKENS, most: int | None = None
    ) -> None:
        self._base, self._head = base, head
        self._budget, self._most = budget, most

    @classmethod
    def load(
        cls,
        base: SharedBase,
        files: RewardFiles,
        budget: int | None = SCORED_TOKENS,
        device: torch.device | None = None,
    ) -> Self:
        """Load a frozen reward model onto ``base``.

        Args:
            device: The head's device, if not the base's: a base that will be distributed is still on the CPU.

        Raises:
            AdapterMismatchError: naming both bases, if it was trained on another one.
            UnreadableError: if the head's file is missing or damaged.
        """
        base.load_role(ROLE, files.adapter, trainable=False)
        head = load_head(files.head).to(device or base.device).requires_grad_(False)
        return cls(base, head, budget)

    def scores(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """The scores of each prompt's responses. They are packed within the budget; each prompt is computed once.

        Args:
            prompts: The tokens of each prompt. There may be none: if the base is distributed over processes, each
                process has to call this method.
            responses: For each prompt, the tokens of its responses.
        """
        scores: dict[int, list[float]] = {}
        with self._base.role(ROLE):
            tokens = tree_tokens(self._base.model, prompts, responses)
            for indices in plan(tokens, self._budget, self._most):
                groups = self.forward([prompts[index] for index in indices], [responses[index] for index in indices])
                scores.update(zip(indices, (group.tolist() for group in groups), strict=True))
        return [scores[index] for index in range(len(prompts))]

    def forward(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> list[Tensor]:
        """The scores (K,) of each prompt's responses, from one packed pass. The caller has entered the role."""
        flat = last_token_scores(self._base.model, pack(prompts, responses), self._head)  # (R,)
        return list(torch.split(flat, [len(group) for group in responses]))

    def save(self, files: RewardFiles) -> None:
        """Write the adapter, a plain PEFT folder, and the head."""
        self._base.save_role(ROLE, files.adapter)
        save_head(self._head, files.head)


Group = tuple[list[int], list[list[int]]]
"""The tokens of a prompt, and of each response to it."""


class RewardScorer:
    """A :data:`~retro.retrospective.samplers.base.Scorer`; requests that are under way at once become one batch."""

    def __init__(self, encoder: Encoder, model: RewardModel) -> None:
        self._encoder = encoder
        self._model = model
        self._rounds: Rounds[Group, list[float]] = Rounds(self._score)

    async def __call__(self, request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
        """A score for each reflection, in their order."""
        prompt = self._encoder.prompt(request.episode)
        responses = [self._encoder.response(reflection) for reflection in reflections]
        return await self._rounds.submit((prompt, responses))

    def _score(self, groups: list[Group]) -> list[list[float]]:
        return self._model.scores([prompt for prompt, _ in groups], [responses for _, responses in groups])
