"""What PPO learns from: one step's responses, with a shape and a meaning behind each field.

There are ``B`` responses of this process, right-padded to the length of the longest, ``L`` tokens. Position ``t`` is
the response's token ``t``, and ``mask[b, t]`` says whether there is one. Values at padded positions have no meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes. Every mean of the algorithm is a sum and a count that were summed by it."""


def alone(tensor: Tensor) -> Tensor:
    """The :data:`Reduce` of a single process."""
    return tensor


@dataclass(frozen=True, slots=True)
class Outputs:
    """The result of one forward pass of the policy and the value head over given responses."""

    log_probs: Tensor  # (B, L) log π_θ(a_t | s_t), at temperature 1
    values: Tensor  # (B, L) V(s_t), the prediction before token t is written
    entropies: Tensor  # (B, L) entropy of π_θ(· | s_t), nats


@dataclass(frozen=True, slots=True)
class Rollout:
    """Responses as they were sampled and scored."""

    mask: Tensor  # (B, L) bool
    contexts: tuple[int, ...]  # B: the slot of the context in the step's order, equal for a group and its chains
    chains: tuple[int, ...]  # B: the number of the response's chain in its group; without chains, of the response
    scores: Tensor  # (B,) the reward of the response, without the KL penalty
    log_probs: Tensor  # (B, L) log π_old, recomputed by the training forward
    values: Tensor  # (B, L) V_old
    reference_log_probs: Tensor  # (B, L) log π_ref


@dataclass(frozen=True, slots=True)
class Experience(Rollout):
    """What the update reads; constant during the update."""

    rewards: Tensor  # (B, L) −β (log π_old − log π_ref), plus the score at the last token
    advantages: Tensor  # (B, L) Â, whitened if asked
    returns: Tensor  # (B, L) targets of the value head
    kept: Tensor  # (B,) bool: whether the update reads the response


class Policy(Protocol):
    """The forward pass that :func:`retro.rl.ppo.update` differentiates."""

    def __call__(self, rows: Sequence[int]) -> Iterator[tuple[list[int], Outputs]]:
        """Run the responses of ``rows`` (indices into B), whole groups, in as many microbatches as memory needs.

        Yields the rows of a microbatch and its outputs with gradients. Go backward before taking the next.
        """
        ...


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The sum over tokens; padding may hold anything, even NaN."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()
