"""What an algorithm learns from in a step: scored groups of responses, and the policy that is to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from retro.rl.experience import Policy, Reduce, Rollout
from retro.rl.gradients import Trainable, clip, sum_over_processes
from retro.training.policy.groups import Group, Response
from retro.training.policy.models import Packs, PolicyModels
from retro.training.policy.sampler_gap import require_small_gap, sampler_gaps


@dataclass(eq=False)
class Batch:
    """The scored responses of one step that this process holds, and the parts of the update that algorithms share.

    A response is named by its row: the groups stand one after the other, each with its responses in order. A process
    may hold no group: it takes part in every sum all the same.
    """

    step: int
    seed: int
    """For draws within the step; equal on all processes."""
    groups: Sequence[Group]
    """Whole groups with their rewards, in the order of their slots."""
    total: int
    """Responses over all processes."""
    reduce: Reduce
    """Sums a tensor over all processes."""
    trainables: Sequence[Trainable]
    """The trained parameters by part: ``policy``, and ``value`` where the algorithm needs values."""
    optimiser: torch.optim.Optimizer
    """Over all of them, with the step's learning rates. The stage keeps its state in checkpoints."""
    max_grad_norm: float
    _models: PolicyModels

    @cached_property
    def responses(self) -> list[Response]:
        return [response for group in self.groups for response in group.responses]

    @cached_property
    def rewards(self) -> list[float]:
        """One a row."""
        return [reward for group in self.groups for reward in group.rewards]

    @cached_property
    def mask(self) -> Tensor:
        """(B, L) bool: which positions of a row are tokens of its response."""
        lengths = torch.tensor([len(response.ids) for response in self.responses], dtype=torch.long)  # (B,)
        longest = int(lengths.max()) if len(lengths) else 0
        return (torch.arange(longest) < lengths[:, None]).to(self._models.base.device)

    @cached_property
    def rollout(self) -> Rollout:
        """Log-probabilities (and values) by the policy before the update, and by the reference.

        Raises:
            ValueError: if the algorithm does not need the ``reference``.
        """
        return self._models.rollout(self._packs, self.responses, self.rewards)

    @cached_property
    def sampler_gaps(self) -> list[float]:
        """How far the sampler's log-probabilities are from the rollout's, nats a token, one a row."""
        return sampler_gaps(self.rollout, self.responses)

    @property
    def recomputed(self) -> bool:
        """Whether :attr:`sampler_gaps` were computed."""
        return "sampler_gaps" in vars(self)

    def require_small_gap(self, most: float | None) -> None:
        """Stop before the update if the sampler is not the policy (:func:`require_small_gap`)."""
        require_small_gap(self.sampler_gaps, self.responses, most, self.step, self.reduce, self.rollout.mask.device)

    @contextmanager
    def policy(self, entropy_gradient: bool = False) -> Iterator[Policy]:
        """The differentiable forward pass over rows; all backward passes belong inside.

        Args:
            entropy_gradient: without it the entropies are constants of the backward pass.
        """
        with self._models.learning(self._packs, entropy_gradient) as policy:
            yield policy

    def update(self, terms: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Let the optimiser make a step with the gradients of all processes, each part clipped to ``max_grad_norm``.

        Args:
            terms: (n,), sums over this process's share of the loss, such as the loss itself.

        Returns:
            The terms of all processes, and ``grad_norm/PART`` before clipping.

        Raises:
            DivergedError: on a gradient that is not finite; nothing is changed then.
        """
        parameters = [parameter for part in self.trainables for parameter in part.parameters]
        terms = sum_over_processes(parameters, terms, self.reduce)
        norms = clip(self.trainables, self.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return terms, {f"grad_norm/{part}": norm for part, norm in norms.items()}

    @cached_property
    def _packs(self) -> Packs:
        return self._models.packs(self.groups)
