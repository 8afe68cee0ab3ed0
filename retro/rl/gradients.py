"""What every update does between the backward pass and the optimiser: sum gradients over processes, and clip them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retro.rl.experience import Reduce, alone


class DivergedError(ValueError):
    """The update is not finite any more: nothing was changed by it."""


@dataclass(frozen=True, slots=True)
class Trainable:
    """Parameters that are clipped together; their optimiser has a parameter group of the same name."""

    name: str
    parameters: Sequence[torch.nn.Parameter]


def sum_over_processes(parameters: Sequence[torch.nn.Parameter], terms: Tensor, reduce: Reduce = alone) -> Tensor:
    """One all-reduce of all gradients and the terms beside them; returns the terms of all processes.

    Explicit, where DistributedDataParallel would do it in hooks: DDP averages over processes, whatever share of the
    tokens each holds, and expects a backward on each; a process that holds nothing of a minibatch has none.

    Args:
        terms: (n,), sums over this process's share, such as losses and counts.
    """
    if reduce is alone:
        return terms
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat(
        [*(parameter.grad.float().flatten() for parameter in parameters if parameter.grad is not None), terms]
    )
    flat = reduce(flat)
    offset = 0
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()
    return flat[offset:]


def clip(trainables: Sequence[Trainable], most: float) -> dict[str, float]:
    """Scale the gradient of each trainable to the norm ``most``; returns the norms before.

    Raises:
        DivergedError: on a gradient that is not finite.
    """
    norms = {}
    for trainable in trainables:
        norm = torch.nn.utils.clip_grad_norm_(trainable.parameters, most)
        if not torch.isfinite(norm):
            raise DivergedError(
                f"the gradient of {trainable.name} is {float(norm)}: lower ppo.learning_rate or ppo.max_grad_norm"
            )
        norms[trainable.name] = float(norm)
    return norms
