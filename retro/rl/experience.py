"""What PPO learns from: one step's responses, with a shape and a meaning behind each field.

Everywhere: ``B`` responses of this process, ``L`` the longest of them in tokens, right-padded; position ``t`` is the
response's token ``t`` and ``mask[b, t]`` says whether there is one. Values at padded positions mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes. Every mean of the algorithm is a sum and a count that went through it."""


def alone(tensor: Tensor) -> Tensor:
    """The :data:`Reduce` of a single process: nothing to add."""
    return tensor


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the policy and the value head say about given responses: the result of one forward pass."""

    log_probs: Tensor  # (B, L) log π_θ(a_t | s_t), at temperature 1
    values: Tensor  # (B, L) V(s_t), the prediction before token t is written
    entropies: Tensor  # (B, L) entropy of π_θ(· | s_t), nats


@dataclass(frozen=True, slots=True)
class Rollout:
    """Responses as they were sampled and scored, before the algorithm looks at them."""

    mask: Tensor  # (B, L) bool
    contexts: tuple[int, ...]  # B: the context's place in the step's global order; a group shares one
    scores: Tensor  # (B,) what the response is worth, without the KL penalty
    log_probs: Tensor  # (B, L) log π_old, recomputed by the training forward
    values: Tensor  # (B, L) V_old
    reference_log_probs: Tensor  # (B, L) log π_ref


@dataclass(frozen=True, slots=True)
class Experience:
    """What the update reads. All of it is constant during the update."""

    mask: Tensor  # (B, L) bool
    contexts: tuple[int, ...]  # B
    log_probs: Tensor  # (B, L) log π_old
    reference_log_probs: Tensor  # (B, L) log π_ref
    values: Tensor  # (B, L) V_old
    rewards: Tensor  # (B, L) −β (log π_old − log π_ref), plus the score at the last token
    advantages: Tensor  # (B, L) Â, whitened if asked
    returns: Tensor  # (B, L) targets of the value head


class Policy(Protocol):
    """The forward pass that :func:`retro.rl.ppo.update` differentiates."""

    def __call__(self, rows: Sequence[int]) -> Iterator[tuple[list[int], Outputs]]:
        """Run the responses of ``rows`` (indices into B), whole groups, in as many microbatches as memory wants.

        Yields the rows of a microbatch and its outputs, with gradients; the caller goes backward before it asks for
        the next.
        """
        ...


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The sum over real tokens; padding may hold anything, NaN too."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()
