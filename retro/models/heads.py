"""Scalar heads outside the adapters: the value head and the reward model's head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from retro.models.tensors import read_tensors, write_tensors
from retro.reading import UnreadableError, cut


class ScalarHead(nn.Module):
    """A linear map from a hidden state to one number, in float32 whatever the base's dtype.

    Args:
        hidden_size: H of the base.
        seed: that of the initial weights, normal with variance 1 / H; the bias starts at 0.
        zero: start as the constant 0 instead, as a value head does.
    """

    def __init__(self, hidden_size: int, seed: int = 0, zero: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed % 2**63)
        weight = torch.zeros(hidden_size) if zero else torch.randn(hidden_size, generator=generator) / hidden_size**0.5
        self.weight = nn.Parameter(weight)  # (H,)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) → (...)."""
        if hidden.shape[-1] != len(self.weight):
            raise ValueError(
                f"a head for hidden size {len(self.weight)} on a base of hidden size {hidden.shape[-1]}: "
                "give the base that the head was trained on"
            )
        return hidden.to(self.weight.dtype) @ self.weight + self.bias


def save_head(head: ScalarHead, path: Path) -> None:
    """Write the head as a safetensors file."""
    write_tensors(head.state_dict(), path)


def load_head(path: Path) -> ScalarHead:
    """Read a head that :func:`save_head` wrote, on the CPU.

    Raises:
        UnreadableError: naming the file, if it is missing, damaged, or not a head.
    """
    state = read_tensors(path)
    if set(state) != {"weight", "bias"} or state["weight"].dim() != 1 or state["bias"].dim() != 0:
        raise UnreadableError(f"{path}: holds {cut(str(sorted(state)))}, not a scalar head's weight (H,) and bias")
    head = ScalarHead(len(state["weight"]), zero=True)
    head.load_state_dict(state)
    return head
