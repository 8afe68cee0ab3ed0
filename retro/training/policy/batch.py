"""What an algorithm learns from in a step: scored groups of responses, and the policy that is to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from retro.rl.experience import Policy, Reduce, Rollout, alone
from retro.rl.gradients import Trainable, clip, sum_over_processes
from retro.training.policy.groups import Group, Response
from retro.training.policy.imitation import Imitation
from retro.training.policy.models import Packs, PolicyModels, token_mask
from retro.types import derive_seed


class SamplerGapError(ValueError):
    """The sampled tokens do not come from the policy that is trained. Nothing was learnt from them."""


@dataclass(eq=False)
class Batch:
    """The scored responses of one step that this process holds, and the parts of the update that algorithms share.

    Each response has a row: the groups follow one another, each with its responses in order. A process without groups
    still takes part in every sum.
    """

    step: int
    seed: int
    """For draws within the step; equal on all processes."""
    groups: Sequence[Group]
    """Whole groups with their rewards, in the order of their turns, and within a turn in the order of their slots."""
    total: int
    """The number of responses over all processes."""
    reduce: Reduce
    """Sums a tensor over all processes."""
    trainables: Sequence[Trainable]
    """The trained parameters by part: ``policy``, and ``value`` where the algorithm needs values."""
    optimiser: torch.optim.Optimizer
    """Over all trained parameters, with the step's learning rates. The stage keeps its state in checkpoints."""
    max_grad_norm: float
    _models: PolicyModels
    _imitation: Imitation | None = None

    @cached_property
    def responses(self) -> list[Response]:
        return [response for group in self.groups for response in group.responses]

    @cached_property
    def rewards(self) -> list[float]:
        """One for each row."""
        return [reward for group in self.groups for reward in group.rewards]

    @cached_property
    def mask(self) -> Tensor:
        """(B, L) bool: which positions of a row are tokens of its response."""
        return token_mask(self.responses).to(self._models.base.device)

    @cached_property
    def rollout(self) -> Rollout:
        """Log-probabilities (and values) by the policy before the update, and by the reference.

        Raises:
            ValueError: if ``reference`` is not among the algorithm's needs.
        """
        return self._models.rollout(self._packs, self.responses, self.rewards)

    @cached_property
    def sampler_gaps(self) -> list[float]:
        """How far the sampler's log-probabilities are from the rollout's, nats per token, one for each row."""
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
        """The differentiable forward pass over rows. Call it, and every backward pass, inside the ``with``.

        Args:
            entropy_gradient: whether gradients flow through the entropies; else they are constants.
        """
        with self._models.learning(self._packs, entropy_gradient) as policy:
            yield policy

    def imitate(self, weight: float, size: int, update: int) -> Tensor:
        """Add the gradient of ``weight`` times the cross-entropy of a batch of the SFT set (:class:`Imitation`).

        Call it inside the ``with`` of :meth:`policy`, on every process.

        Args:
            size: reflections in the batch, over all processes.
            update: the number of the optimiser step within this step, which has a batch of its own.

        Raises:
            ValueError: if ``imitation`` is not among the algorithm's needs.
        """
        if self._imitation is None:
            raise ValueError("the SFT set was not read: the algorithm's needs lack 'imitation'")
        return self._imitation.backward(weight, size, derive_seed(self.seed, "imitation", update))

    def update(self, terms: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Let the optimiser make a step with the gradients of all processes, each part clipped to ``max_grad_norm``.

        Args:
            terms: (n,), sums over this process's share of the loss, such as the loss itself.

        Returns:
            The terms of all processes, and ``grad_norm/PART`` before clipping.

        Raises:
            DivergedError: on a gradient that is not finite. The parameters stay as they were.
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


def sampler_gaps(rollout: Rollout, responses: Sequence[Response]) -> list[float]:
    """The mean distance between the sampler's log-probabilities of a response and the recomputed ones, nats per token.

    The two come from different computations (cache and batch; packing), so a growing gap means that one is wrong.
    """
    recomputed = rollout.log_probs.cpu()
    return [
        float((recomputed[row, : len(response.ids)] - torch.tensor(response.log_probs)).abs().mean())
        for row, response in enumerate(responses)
    ]


def require_small_gap(
    gaps: Sequence[float],
    responses: Sequence[Response],
    most: float | None,
    step: int,
    reduce: Reduce = alone,
    device: torch.device | str = "cpu",
) -> None:
    """Stop before the update if the mean gap of a step is too large.

    PPO's ratio is π_new / π_old, with π_old recomputed by the training forward pass. If the tokens came from another
    distribution (a stale or wrong adapter, another quantisation, another temperature), the update is biased, and no
    loss or reward shows it. The mean is over the tokens of all processes, so either all of them stop or none.

    Args:
        gaps: nats per token, one for each response of this process.
        most: the bound (``ppo.max_sampler_gap``); None for no bound.

    Raises:
        SamplerGapError: if the mean is above the bound, or is not a number.
    """
    if most is None:
        return
    lengths = [len(response.ids) for response in responses]
    total = float(sum(gap * length for gap, length in zip(gaps, lengths, strict=True)))
    distance, tokens = reduce(torch.tensor([total, float(sum(lengths))], device=device)).tolist()
    mean = distance / max(tokens, 1.0)
    if not mean <= most:  # also true for NaN
        raise SamplerGapError(
            f"ppo: in step {step} the sampler's log-probabilities are {mean:.3g} nats a token from those that training "
            f"computes for the same tokens; ppo.max_sampler_gap allows {most:g}. Nothing was learnt from this step. "
            "Check that both sides have the same base, model.dtype and model.quantization, and that a server has the "
            "policy's latest adapter loaded and samples at temperature 1. The same command continues from the last "
            "checkpoint; a larger ppo.max_sampler_gap (null: no bound) does not start the stage anew."
        )
