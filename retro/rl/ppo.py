"""Proximal policy optimisation of responses, from scored rollouts to the updated policy (arXiv 1707.06347).

:func:`build_experience` turns scores into token rewards and advantages, and :func:`update` makes the epochs over them.
The caller supplies the responses, their scores and the policy's forward pass.

Processes have different contexts of the same step. Every mean is over the tokens of all processes: gradients are sums,
divided by a count over all processes, so that n processes make the same update as one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from retro.rl.advantages import gae, group_normalised, leave_one_out, over_chains, tied, whiten
from retro.rl.experience import Experience, Outputs, Policy, Reduce, Rollout, alone, masked_sum
from retro.rl.gradients import Trainable, clip, sum_over_processes
from retro.rl.kl import k1, k3, penalised_rewards
from retro.rl.losses import clipped_surrogate, clipped_value_loss
from retro.rl.options import PpoOptions
from retro.types import derive_seed

TERMS = (
    "tokens",
    "policy_loss",
    "value_loss",
    "entropy",
    "kl_loss",
    "approx_kl",
    "clip_fraction",
    "value_clip_fraction",
)
"""Sums over the tokens of a minibatch, in the order in which they are reduced with the gradients."""


def build_experience(rollout: Rollout, section: PpoOptions, coefficient: float, reduce: Reduce = alone) -> Experience:
    """Scores → token rewards (KL to the reference inside) → advantages → whitening.

    ``gae`` has a value for each token. ``rloo`` and ``group`` give all tokens of a response one advantage: its score
    plus its KL penalty, minus the mean of the rest of the group. ``group`` divides only the scores by their deviation;
    else the KL noise of a group with equal scores would be scaled up to unit size. ``chain`` does the same with the
    sums of whole chains (:func:`retro.rl.advantages.over_chains`).

    ``drop_equal_groups`` gives no advantage to groups with equal scores (sums of chains), and the update does not read
    them.

    Args:
        coefficient: β of this step.
    """
    mask = rollout.mask
    rewards = penalised_rewards(rollout.scores, rollout.log_probs, rollout.reference_log_probs, mask, coefficient)
    if section.advantage == "gae":
        advantages, returns = gae(rewards, rollout.values, mask, section.gamma, section.lam)
    else:
        totals, groups = rewards.sum(dim=1), rollout.contexts  # (B,)
        scores = rollout.scores.to(totals.dtype)
        if section.advantage == "rloo":
            whole = leave_one_out(totals, groups)
        elif section.advantage == "group":
            whole = group_normalised(scores, groups) + leave_one_out(totals - scores, groups)
        else:
            whole = over_chains(group_normalised, scores, groups, rollout.chains)
            whole = whole + over_chains(leave_one_out, totals - scores, groups, rollout.chains)
        advantages = whole[:, None] * mask
        returns = totals[:, None] * mask
    kept = torch.ones_like(rollout.scores, dtype=torch.bool)
    if section.drop_equal_groups:
        kept = ~equal_groups(rollout)
        advantages = advantages.masked_fill(~kept[:, None], 0.0)
    if section.whitens:
        advantages = whiten(advantages, mask & kept[:, None], reduce)
    sampled = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    return Experience(**sampled, rewards=rewards, advantages=advantages, returns=returns, kept=kept)


def update(
    experience: Experience,
    policy: Policy,
    trainables: Sequence[Trainable],
    optimiser: torch.optim.Optimizer,
    section: PpoOptions,
    seed: int,
    reduce: Reduce = alone,
    imitate: Callable[[int], Tensor] | None = None,
) -> dict[str, float]:
    """Improve the policy on one step's experience: epochs × minibatches of whole groups, one optimiser step each.

    Args:
        policy: the forward pass of this process's responses.
        trainables: each is clipped to ``max_grad_norm`` by itself.
        seed: that of the order of contexts; equal on all processes.
        imitate: adds the gradient of a further loss, the imitation anchor, in the optimiser step of a number from 0,
            and returns this process's share of that loss, shape (), before its coefficient.

    Returns:
        Means over the tokens of all processes and all optimiser steps, ``grad_norm/NAME`` before clipping, the number
        of ``updates``, and whether ``target_kl`` ended them early (``stopped``, 0 or 1). With ``imitate``, also the
        mean of its loss (``imitation_loss``).

    Raises:
        DivergedError: on a loss or gradient that is not finite. The parameters stay as they were.
    """
    parameters = [parameter for trainable in trainables for parameter in trainable.parameters]
    sums = torch.zeros(len(TERMS), dtype=torch.float64)
    norms = dict.fromkeys((trainable.name for trainable in trainables), 0.0)
    updates, approx_kl, stopped, imitation = 0, 0.0, False, 0.0
    for rows, tokens in _minibatches(experience, section, seed, reduce):
        optimiser.zero_grad(set_to_none=True)
        terms = _backward(experience, policy, rows, tokens, section)
        if imitate is not None:
            terms = torch.cat([terms, imitate(updates)[None]])
        terms = sum_over_processes(parameters, terms, reduce).double().cpu()
        approx_kl = float(terms[TERMS.index("approx_kl")]) / tokens
        if section.target_kl is not None and approx_kl > section.target_kl:
            stopped = True
            break
        for name, norm in clip(trainables, section.max_grad_norm).items():
            norms[name] += norm
        optimiser.step()
        sums += terms[: len(TERMS)]
        imitation += float(terms[len(TERMS) :].sum())
        updates += 1
    optimiser.zero_grad(set_to_none=True)
    metrics = _metrics(sums, norms, updates, approx_kl, stopped)
    return metrics if imitate is None else metrics | {"imitation_loss": imitation / max(updates, 1)}


def _minibatches(experience: Experience, section: PpoOptions, seed: int, reduce: Reduce) -> list[tuple[list[int], int]]:
    """(this process's rows, tokens of all processes) of every optimiser step: whole groups in shuffled order."""
    rows_of: dict[int, list[int]] = {}
    for row, (context, kept) in enumerate(zip(experience.contexts, experience.kept.tolist(), strict=True)):
        if kept:
            rows_of.setdefault(context, []).append(row)
    minibatches = []
    for epoch in range(section.epochs):
        order = list(range(section.contexts))
        random.Random(derive_seed(seed, "epoch", epoch)).shuffle(order)
        size = -(-section.contexts // section.minibatches)
        for start in range(0, section.contexts, size):
            minibatches.append([row for context in order[start : start + size] for row in rows_of.get(context, ())])
    lengths = experience.mask.sum(dim=1).tolist()
    local = torch.tensor(
        [float(sum(lengths[row] for row in rows)) for rows in minibatches], device=experience.mask.device
    )
    counts = [int(count) for count in reduce(local).tolist()]
    return [(rows, tokens) for rows, tokens in zip(minibatches, counts, strict=True) if tokens]


def _backward(experience: Experience, policy: Policy, rows: Sequence[int], tokens: int, section: PpoOptions) -> Tensor:
    """Accumulate the gradients of this process's share of a minibatch; return the sums of its terms, (len(TERMS),)."""
    total = torch.zeros(len(TERMS), device=experience.mask.device)
    for chosen, outputs in policy(rows):  # even without rows, since a base in pieces needs all processes
        terms = _terms(experience, chosen, outputs, section)
        loss = terms["policy_loss"] - section.entropy_coefficient * terms["entropy"]
        if section.advantage == "gae":
            loss = loss + section.value_coefficient * terms["value_loss"]
        if section.kl.loss == "k3":
            loss = loss + section.kl.loss_coefficient * terms["kl_loss"]
        (loss / tokens).backward()
        total += torch.stack([terms[name].detach().float() for name in TERMS])
    return total


def _terms(experience: Experience, rows: Sequence[int], outputs: Outputs, section: PpoOptions) -> Mapping[str, Tensor]:
    """Every term of :data:`TERMS`, summed over the tokens of ``rows``."""
    index = torch.tensor(rows, device=experience.mask.device)
    length = outputs.log_probs.shape[1]  # a microbatch may be narrower than the whole step

    def pick(values: Tensor) -> Tensor:
        return values[index, :length]  # (b, l)

    mask, old = pick(experience.mask), pick(experience.log_probs)
    log_probs = torch.where(mask, outputs.log_probs, old)  # padding: ratio 1, no gradient, no NaN
    policy_loss, clipped = clipped_surrogate(log_probs, old, pick(experience.advantages), section.clip)
    value_loss, value_clipped = clipped_value_loss(
        outputs.values, pick(experience.values), pick(experience.returns), section.value_clip
    )
    reference = torch.where(mask, pick(experience.reference_log_probs), log_probs.detach())
    terms = {
        "tokens": mask.to(log_probs.dtype),
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": outputs.entropies,
        "kl_loss": k3(log_probs, reference),
        "approx_kl": k3(old, log_probs).detach(),
        "clip_fraction": clipped,
        "value_clip_fraction": value_clipped,
    }
    return {name: masked_sum(values, mask) for name, values in terms.items()}


def _metrics(
    sums: Tensor, norms: Mapping[str, float], updates: int, approx_kl: float, stopped: bool
) -> dict[str, float]:
    tokens = max(float(sums[0]), 1.0)
    metrics: dict[str, Any] = {name: float(value) / tokens for name, value in zip(TERMS[1:], sums[1:], strict=True)}
    metrics |= {f"grad_norm/{name}": norm / max(updates, 1) for name, norm in norms.items()}
    return metrics | {"last_approx_kl": approx_kl, "updates": float(updates), "stopped": float(stopped)}


def describe(experience: Experience, reduce: Reduce = alone) -> dict[str, float]:
    """Metrics of a step's experience over all processes, before the update.

    ``kl`` (nats) and ``reward`` (score minus penalty) are means over responses, ``length`` is in tokens, and
    ``explained_variance`` is 1 − Var(R − V) / Var(R) over tokens.
    """
    mask = experience.mask
    divergence = k1(experience.log_probs, experience.reference_log_probs)
    error = experience.returns - experience.values
    parts = (
        mask.any(dim=1).sum(),
        mask.sum(),
        masked_sum(divergence, mask),
        masked_sum(experience.rewards, mask),
        masked_sum(experience.returns, mask),
        masked_sum(experience.returns.square(), mask),
        masked_sum(error, mask),
        masked_sum(error.square(), mask),
    )
    sums = reduce(torch.stack([part.to(torch.float32) for part in parts])).double()
    responses, tokens = sums[0].clamp(min=1), sums[1].clamp(min=1)
    spread = sums[5] / tokens - (sums[4] / tokens) ** 2
    unexplained = sums[7] / tokens - (sums[6] / tokens) ** 2
    return {
        "kl": float(sums[2] / responses),
        "reward": float(sums[3] / responses),
        "length": float(sums[1] / responses),
        "explained_variance": float(1 - unexplained / spread) if float(spread) > 1e-12 else 0.0,
    }


def equal_groups(rollout: Rollout) -> Tensor:
    """(B,) bool: whether all chains of the response's group have equal sums of scores. With one turn, each response is
    a chain."""
    return over_chains(tied, rollout.scores, rollout.contexts, rollout.chains)


def equal_groups_fraction(rollout: Rollout, reduce: Reduce = alone) -> float:
    """The fraction of responses, over all processes, whose group has equal scores (:func:`equal_groups`)."""
    equal = equal_groups(rollout)
    own = torch.tensor([float(equal.sum()), float(len(equal))], device=equal.device)
    count, responses = reduce(own).tolist()
    return float(count / max(responses, 1.0))
