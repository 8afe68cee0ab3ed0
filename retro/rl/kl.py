"""The KL divergence from the reference: estimators per token, the penalty in the reward, and its coefficient.

The estimators are those of Schulman, "Approximating KL divergence" (2020), for actions drawn from π.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retro.rl.options import KlSection


def k1(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """log π − log π_ref (any shape): unbiased for KL(π ‖ π_ref), of either sign.

    Use it only in the reward: as a loss, its expected gradient is E[∇ log π] = 0.
    """
    return log_probs - reference_log_probs


def k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """e^d − 1 − d with d = log π_ref − log π (any shape): unbiased, never negative, of low variance."""
    difference = reference_log_probs - log_probs
    return torch.expm1(difference) - difference


def penalised_rewards(
    scores: Tensor, log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor, coefficient: float
) -> Tensor:
    """The token-level reward: −β·k1 at every token, plus the score at the last one (Ziegler et al. 2019, eq. 2).

    Args:
        scores: (B,)
        log_probs, reference_log_probs: (B, L), by the policy that sampled, and by the reference.
        mask: (B, L), every row with at least one token.
        coefficient: β, units of the score per nat.

    Returns:
        (B, L), zero at padding.
    """
    zero = torch.zeros((), dtype=log_probs.dtype, device=log_probs.device)
    rewards = torch.where(mask, -coefficient * k1(log_probs, reference_log_probs), zero)  # (B, L)
    last = mask.sum(dim=1) - 1  # (B,)
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last] += scores.to(rewards.dtype)
    return rewards


def next_coefficient(coefficient: float, section: KlSection, observed: float, responses: int) -> float:
    """β for the next step: unchanged, or moved towards the target KL in proportion to the error.

    β ← β · (1 + clip(KL / target − 1, ±0.2) · responses / horizon) (Ziegler et al. 2019, section 2.2).

    Args:
        observed: the mean KL of the step, nats per response.
        responses: the number of responses of the step, over all processes.
    """
    if not section.adaptive:
        return coefficient
    error = min(max(observed / section.target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * responses / section.horizon)
