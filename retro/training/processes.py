"""Sums over the processes of a launch."""

from __future__ import annotations

from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from retro.rl.experience import Reduce, alone


def over_processes() -> Reduce:
    """Sums a tensor over all processes of this launch."""
    return alone if PartialState().num_processes == 1 else _sum


def _sum(tensor: Tensor) -> Tensor:
    total: Tensor = reduce(tensor, reduction="sum")
    return total
