"""The one reader of safetensors files: adapters, heads and training states."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from retro.reading import UnreadableError, cut

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What our files hold. Others (8-bit floats) have no test for numbers that are not finite."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU, all of their numbers finite.

    Raises:
        UnreadableError: naming the file, if it is missing, not safetensors, cut off, or if one of its tensors holds a
            number that is not finite or is of another kind than ``DTYPES``.
    """
    if not path.is_file():
        raise UnreadableError(f"{path}: no such file")
    try:
        tensors = load_file(path)
    except Exception as error:  # the library raises its own, OSError, KeyError, RuntimeError and more
        reason = cut(" ".join(str(error).split()))
        raise UnreadableError(f"{path}: its tensors cannot be read: {reason}; make or copy the file again") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UnreadableError(f"{path}: {cut(name)} is of {tensor.dtype}; 64, 32 and 16-bit floats are read")
        if not torch.isfinite(tensor).all():
            raise UnreadableError(
                f"{path}: {cut(name)} holds numbers that are not finite: the file is damaged, or its training diverged"
            )
    return tensors
