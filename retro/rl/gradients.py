"""What every update does between the backward pass and the optimiser step: sum and clip the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import reduce as reduce_tensor
from torch import Tensor

from retro.rl.experience import Reduce, alone


class DivergedError(ValueError):
    """The loss or a gradient is not finite. The parameters were not changed."""


@dataclass(frozen=True, slots=True)
class Trainable:
    """Parameters that are clipped together; each is one parameter group of the optimiser."""

    name: str
    parameters: Sequence[torch.nn.Parameter]


def over_processes() -> Reduce:
    """The :data:`Reduce` of this launch."""
    return alone if PartialState().num_processes == 1 else lambda tensor: reduce_tensor(tensor, reduction="sum")


def sum_over_processes(parameters: Sequence[torch.nn.Parameter], terms: Tensor, reduce: Reduce = alone) -> Tensor:
    """Sum all gradients, and the terms with them, in one all-reduce; return the terms of all processes.

    DistributedDataParallel does not fit: it averages over processes, whatever share of the tokens each has, and it
    expects a backward pass on each, which a process without rows of a minibatch does not make.

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
    """Clip the gradient of each trainable to the norm ``most``; return the norms before.

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
