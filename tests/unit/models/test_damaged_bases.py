"""A base or a tokenizer that cannot be read is one line that names it; its code runs only if that was allowed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from retro.config import ConfigError, ModelSection
from retro.models.adapters import SharedBase
from retro.models.loading import base_identity, check_tokens, load_base, load_tokenizer


@pytest.fixture
def copied(tiny_model_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"[" * 20_000, b'{"a": 1' + b"0" * 5_000])
def test_damaged_files_end_in_one_line(copied: Path, name: str, content: bytes) -> None:
    (copied / name).write_bytes(content)
    section = ModelSection(base=str(copied))
    with pytest.raises(ConfigError, match=r"base.* cannot be loaded: .") as caught:
        load_base(section, "cpu")
        load_tokenizer(section)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": "two"},
        {"hidden_size": 10**30},
        {"hidden_size": -32},
        {"num_attention_heads": 0},
        {"vocab_size": 10**12},
        {"model_type": "../x"},
        {"model_type": ["llama"]},
        {"rope_parameters": "none"},
    ],
)
def test_absurd_sizes_end_in_one_line(copied: Path, changes: dict[str, Any]) -> None:
    file = copied / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ConfigError, match="base") as caught:
        load_base(ModelSection(base=str(copied)), "cpu")
    assert "\n" not in str(caught.value)


def test_a_tokenizers_length_is_a_number(copied: Path) -> None:
    file = copied / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": "../x"}))
    with pytest.raises(ConfigError, match="model_max_length is not a number"):
        load_tokenizer(ModelSection(base=str(copied)))


def test_an_end_token_that_the_model_does_not_have_is_named(copied: Path) -> None:
    file = copied / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "<made up>"}))
    base = SharedBase.load(ModelSection(base=str(copied)), "cpu")
    with pytest.raises(ConfigError, match="its token '<made up>' has the id"):
        check_tokens(base.model, base.tokenizer)


def test_an_adapter_in_a_bases_folder_is_refused(copied: Path) -> None:
    (copied / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    with pytest.raises(ConfigError, match="is an adapter, or holds one"):
        load_base(ModelSection(base=str(copied)), "cpu")


def test_a_bases_own_code_is_neither_run_nor_asked_about(copied: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (copied / "own.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlamaConfig\nPath({str(marker)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    file = copied / "config.json"
    config = {**json.loads(file.read_text()), "model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    file.write_text(json.dumps(config))
    for load in (
        lambda: load_base(ModelSection(base=str(copied)), "cpu"),
        lambda: base_identity(copied),
    ):
        with pytest.raises(ConfigError, match="if that code may run with all your rights") as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not marker.exists()
