"""PPO's loss terms, one value per token. The caller divides their sums by the number of tokens of all processes."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """−min(ρ Â, clip(ρ, 1 ± ε) Â) with ρ = π / π_old (Schulman et al. 2017, eq. 7).

    Args:
        log_probs, old_log_probs, advantages: (B, L)
        clip: ε

    Returns:
        (loss, clipped), both (B, L): ``clipped`` is 1 where clipping removes the gradient.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    free = -ratio * advantages
    bounded = -ratio.clamp(1.0 - clip, 1.0 + clip) * advantages
    return torch.maximum(free, bounded), (bounded > free).to(ratio.dtype)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """½ max((V − R)², (V_clip − R)²), V_clip at most ε from V_old (Schulman et al.'s code; OpenAI baselines, ppo2).

    Args:
        values, old_values, returns: (B, L)
        clip: ε, in units of the return.

    Returns:
        (loss, clipped), both (B, L).
    """
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    free_error, bounded_error = (values - returns).square(), (bounded - returns).square()
    return 0.5 * torch.maximum(free_error, bounded_error), (bounded_error > free_error).to(values.dtype)
