"""What is believed of an ``adapter_config.json``, and that ordinary adapters of PEFT's load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from retro.config import LoraSection, ModelSection
from retro.models.adapter_config import AdapterConfig
from retro.models.adapter_files import AdapterError, read_adapter
from retro.models.adapters import SharedBase, with_adapter
from retro.models.loading import load_base
from tests.architectures import make

IDS = torch.tensor([[1, 5, 9, 13, 40, 41]])
Saved = Callable[..., Path]


@pytest.fixture
def saved(tiny_model_dir: Path, tmp_path: Path) -> Saved:
    """Writes an adapter with random weights, as ``save_pretrained`` does."""

    def save(**options: Any) -> Path:
        base = load_base(ModelSection(base=str(tiny_model_dir)), "cpu")
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options})
        adapted = get_peft_model(base, config)
        with torch.no_grad():
            for name, value in adapted.named_parameters():
                if "lora_" in name:
                    value.copy_(torch.randn(value.shape) / 4)
        adapted.save_pretrained(tmp_path / "saved")
        return tmp_path / "saved"

    return save


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"target_modules": r".*\.[01]\.self_attn\.(q|k)_proj"},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.0\..*"},
        {"target_modules": ["up_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
        {"target_modules": ["q_proj"], "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}},
        {"target_modules": ["q_proj"], "lora_alpha": 2.5, "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"], "use_dora": True},
    ],
)
def test_what_peft_saves_computes_the_same_here(
    saved: Saved, tiny_model_dir: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder, section = saved(**options), ModelSection(base=str(tiny_model_dir))
    by_peft = PeftModel.from_pretrained(load_base(section, "cpu"), folder).eval()(input_ids=IDS).logits
    plain = load_base(section, "cpu")
    assert not torch.allclose(plain(input_ids=IDS).logits, by_peft, atol=1e-4)
    base = SharedBase(plain, None)  # type: ignore[arg-type]  # nothing is read or written as text
    base.load_role("policy", folder, trainable=False)
    with base.role("policy") as model:
        assert torch.equal(model(input_ids=IDS).logits, by_peft)
    base.save_role("policy", tmp_path / "again")
    base.load_role("again", tmp_path / "again", trainable=False)
    with base.role("again") as model:
        assert torch.equal(model(input_ids=IDS).logits, by_peft)
    merged = with_adapter(load_base(section, "cpu"), folder)
    torch.testing.assert_close(merged(input_ids=IDS).logits, by_peft, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": "NaN"}, "lora_alpha"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"r": 0}, "r: "),
        ({"r": 10**9}, "r: "),
        ({"r": 9}, "rank 9 is too high for the weights' ranks: 4"),
        ({"rank_pattern": {"q_proj": 99}}, "rank 99 is too high"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"base_model_name_or_path": "a\nb"}, "base_model_name_or_path"),
        ({"base_model_name_or_path": "--trust-remote-code"}, "base_model_name_or_path"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"(.*)*x": 4}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: .* not supported"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"lora_bias": True}, "lora_bias"),
        ({"something_new": True}, "something_new"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_its_key(
    saved: Saved, changes: dict[str, Any], words: str
) -> None:
    folder = saved(target_modules=["q_proj"])
    edit(folder, **changes)
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: .*{words}"):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "base.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"{", b"[" * 20_000, b'{"r": 1' + b"0" * 5_000 + b"}", b'{"r": NaN}']
)
def test_a_damaged_file_is_one_line_that_names_it(
    saved: Saved, name: str, content: bytes, tiny_model_dir: Path
) -> None:
    folder = saved(target_modules=["q_proj"])
    (folder / name).write_bytes(content)
    base = SharedBase(load_base(ModelSection(base=str(tiny_model_dir)), "cpu"), None)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=name) as caught:
        base.load_role("policy", folder, trainable=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "qwen2_moe"])
def test_an_adapter_of_experts_comes_back(kind: str, tmp_path: Path) -> None:
    """PEFT writes parameters and expressions of its own into the files of these bases."""
    base = SharedBase(make(kind), None)  # type: ignore[arg-type]
    base.add_role("policy", LoraSection(r=2), seed=1)
    for value in base.role_parameters("policy").values():
        value.data.copy_(torch.randn(value.shape))
    base.save_role("policy", tmp_path)
    base.load_role("again", tmp_path, trainable=False)
    found = base.role_parameters("again")
    for name, value in base.role_parameters("policy").items():
        assert torch.equal(value, found[name])


def test_weights_that_are_not_finite_are_refused(saved: Saved) -> None:
    folder = saved(target_modules=["q_proj"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(AdapterError, match="not finite"):
        read_adapter(folder)


def test_no_module_is_imported_and_no_expression_is_run_by_the_files_word(saved: Saved, tmp_path: Path) -> None:
    folder = saved(target_modules=["q_proj"])
    edit(folder, megatron_core="os", auto_mapping={"parent_library": "os"}, target_modules=r"(\w+\.?)+$x")
    config, _ = read_adapter(folder)
    assert config.megatron_core == LoraConfig().megatron_core
    assert config.auto_mapping is None
    assert config.target_modules == {f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}
    edit(folder, target_modules=["q_proj"], exclude_modules=r"(\w+\.?)+$x")
    assert not read_adapter(folder)[0].exclude_modules
    assert AdapterConfig.read(folder).r == 4
