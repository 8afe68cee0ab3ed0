"""How much better a token was than expected: GAE, leave-one-out and group-normalised advantages, and whitening.

The two that compare the responses of a group take one value for each response, (B,), and B group labels. They are
exactly 0 for a group of equal values, up to rounding, and raise ``ValueError`` for a group of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retro.ratings import DEVIATION_FLOOR
from retro.rl.experience import Reduce, alone, masked_sum
from retro.ties import EQUAL

ROUNDING_STEPS = 4
"""Equal totals may differ by this many float spacings: each was rounded as a score, as a sum and with its penalty."""


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over right-padded responses.

    δ_t = r_t + γ V_{t+1} − V_t and Â_t = δ_t + γλ Â_{t+1}. After a response's last token V and Â are 0, even if the
    response was cut, since nobody reads a continuation.

    Args:
        rewards, values, mask: (B, L)

    Returns:
        (advantages, returns), both (B, L) and zero at padding; returns = advantages + values.
    """
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    rewards, values = torch.where(mask, rewards, zero), torch.where(mask, values, zero)
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], dim=1)  # (B, L) V_{t+1}; 0 past the end
    deltas = rewards + gamma * following - values  # (B, L); zero at padding
    advantages = torch.empty_like(deltas)
    running = deltas.new_zeros(len(deltas))  # (B,) Â_{t+1}
    for t in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def leave_one_out(totals: Tensor, groups: Sequence[int]) -> Tensor:
    """Each response's total minus the mean of the rest of its group (RLOO, Ahmadian et al. 2024, eq. 8)."""
    one_hot, sizes = _membership(totals, groups)
    sums = one_hot @ (totals @ one_hot)  # (B,)
    return (totals - (sums - totals) / (sizes - 1)).masked_fill(tied(totals, groups), 0.0)


def group_normalised(scores: Tensor, groups: Sequence[int]) -> Tensor:
    """(score − group mean) / (group std + ε), std over n − 1 (GRPO, Shao et al. 2024, section 4.1.2).

    This is :func:`retro.ratings.group_normalised` for several groups of tensors.
    """
    one_hot, sizes = _membership(scores, groups)
    centred = scores - (one_hot @ (scores @ one_hot)) / sizes
    deviation = ((one_hot @ (centred.square() @ one_hot)) / (sizes - 1)).sqrt()
    return (centred / (deviation + DEVIATION_FLOOR)).masked_fill(tied(scores, groups), 0.0)


def over_chains(
    compare: Callable[[Tensor, Sequence[int]], Tensor], values: Tensor, groups: Sequence[int], chains: Sequence[int]
) -> Tensor:
    """Compare whole chains, and give each response what its chain has (Flow-GRPO, arXiv 2510.05592).

    A chain is a trajectory of several responses. Its value is the sum of theirs, and it counts once in the mean and in
    the deviation of its group, however long it is. We follow the paper's text here: its code averages over responses,
    so that longer chains weigh more.

    Args:
        compare: what compares the values of a group, such as :func:`group_normalised`.
        values: (B,)
        groups: B labels; the chains of a group are compared.
        chains: B numbers, equal for the responses of one chain in a group.

    Returns:
        (B,)
    """
    labels = sorted(set(zip(groups, chains, strict=True)))
    number = {label: index for index, label in enumerate(labels)}
    rows = torch.tensor([number[label] for label in zip(groups, chains, strict=True)], dtype=torch.long)
    rows = rows.to(values.device)  # (B,)
    one_hot = (rows[:, None] == torch.arange(len(labels), device=values.device)).to(values.dtype)  # (B, C)
    return compare(values @ one_hot, [group for group, _ in labels])[rows]


def tied(values: Tensor, groups: Sequence[int]) -> Tensor:
    """(B,) bool: whether all values of the response's group are equal, up to rounding in their dtype."""
    if not len(values):
        return torch.zeros_like(values, dtype=torch.bool)
    members = _members(values, groups)  # (B, G)
    highest = values[:, None].masked_fill(~members, -torch.inf).amax(dim=0)  # (G,)
    lowest = values[:, None].masked_fill(~members, torch.inf).amin(dim=0)  # (G,)
    rounding = ROUNDING_STEPS * torch.finfo(values.dtype).eps * torch.maximum(highest.abs(), lowest.abs())
    return (highest - lowest <= EQUAL + rounding)[members.long().argmax(dim=1)]


def _members(values: Tensor, groups: Sequence[int]) -> Tensor:
    """(B, G) bool: which group a response belongs to."""
    labels = sorted(set(groups))
    columns = torch.tensor([labels.index(group) for group in groups], dtype=torch.long, device=values.device)  # (B,)
    return columns[:, None] == torch.arange(len(labels), device=values.device)


def _membership(values: Tensor, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
    one_hot = _members(values, groups).to(values.dtype)  # (B, G)
    sizes = one_hot @ one_hot.sum(dim=0)  # (B,)
    if len(groups) and bool((sizes < 2).any()):
        raise ValueError("advantages that compare a group's responses need at least two responses in every group")
    return one_hot, sizes


def whiten(values: Tensor, mask: Tensor, reduce: Reduce = alone, epsilon: float = 1e-8) -> Tensor:
    """``values`` (B, L) with mean 0 and variance 1 over the tokens of all processes, and 0 at padding."""
    count_and_sum = reduce(torch.stack([mask.sum().to(values.dtype), masked_sum(values, mask)]))
    count = count_and_sum[0].clamp(min=1)
    centred = values - count_and_sum[1] / count
    variance = reduce(masked_sum(centred.square(), mask)) / count
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    return torch.where(mask, centred * torch.rsqrt(variance + epsilon), zero)
