"""Scalar heads: what they compute, and that they come back from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retro.models.heads import ScalarHead, load_head, save_head


def test_a_head_is_a_linear_map_in_float32() -> None:
    head = ScalarHead(4, seed=1)
    hidden = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    values = head(hidden)
    assert values.shape == (2, 3)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, (hidden.float() * head.weight).sum(-1) + head.bias)


def test_seeds_and_zero() -> None:
    assert torch.equal(ScalarHead(8, seed=1).weight, ScalarHead(8, seed=1).weight)
    assert not torch.equal(ScalarHead(8, seed=1).weight, ScalarHead(8, seed=2).weight)
    assert not ScalarHead(8, zero=True)(torch.randn(5, 8)).any()


def test_a_head_comes_back_from_disk(tmp_path: Path) -> None:
    head = ScalarHead(8, seed=1)
    save_head(head, tmp_path / "reward" / "head.safetensors")
    hidden = torch.randn(5, 8)
    assert torch.equal(load_head(tmp_path / "reward" / "head.safetensors")(hidden), head(hidden))
    assert [path.name for path in (tmp_path / "reward").iterdir()] == ["head.safetensors"]


def test_what_is_no_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.safetensors"):
        load_head(tmp_path / "gone.safetensors")
    save_file({"score": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: holds \['score'\]"):
        load_head(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="hidden size 8 on a base of hidden size 6"):
        ScalarHead(8)(torch.zeros(2, 6))
