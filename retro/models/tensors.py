"""Reading and writing safetensors files: adapters, heads and training states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retro.reading import UnreadableError, cut

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The types in our files. Others (8-bit floats) have no test for numbers that are not finite."""


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(whole, part, metadata)
    part.replace(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        UnreadableError: naming the file, if it is missing, not safetensors or cut off, or if one of its tensors holds a
            number that is not finite, or has another type than ``DTYPES``.
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
