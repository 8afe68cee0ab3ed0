"""Safetensors files that are damaged are named, whatever is wrong with them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.models.heads import ScalarHead, load_head, save_head
from retro.models.tensors import read_tensors
from retro.reading import UnreadableError


def with_header(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        with_header({}, length=2**63),
        with_header({}, length=100_000_000),
        with_header(b"\xff\xfe"),
        with_header(b'{"a":' + b"[" * 20_000),
        with_header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}),
        with_header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8),
        with_header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"\x7f" * 4),
        with_header({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
    ],
)
def test_what_is_damaged_is_one_line_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    file.write_bytes(content)
    with pytest.raises(UnreadableError, match=r"head\.safetensors: ") as caught:
        read_tensors(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_refused(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    save_head(ScalarHead(8, seed=1), tmp_path / "head.safetensors")
    state = load_file(tmp_path / "head.safetensors")
    state["weight"][3] = value
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "head.safetensors")
    with pytest.raises(UnreadableError, match=r"head\.safetensors: weight holds numbers that are not finite"):
        load_head(tmp_path / "head.safetensors")


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(8), "bias": torch.zeros(2)}, tmp_path / "head.safetensors")
    with pytest.raises(UnreadableError, match="not a scalar head's"):
        load_head(tmp_path / "head.safetensors")
