"""What the tests of the models share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import build
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture(params=["llama", "qwen2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> PreTrainedModel:
    """In float64: what is equal is equal to 1e-9."""
    return build(kind)


@pytest.fixture(scope="session")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)
