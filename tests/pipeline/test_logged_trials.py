"""The paper's HotPotQA config on a few of the real logs, with a small random model: the path, not a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.smollm2 import SHARES
from scripts.small_models.household.tokenizer import build_tokenizer
from tests.pipeline.running import ROOT, read_metrics, retro


@pytest.fixture(scope="module")
def long_context_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose context holds the logged trajectories; their words are mostly unknown to its tokenizer."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("long-context")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", ["hotpotqa-longchat.yaml"])
def test_sft_reward_ppo_and_export_run_from_the_logged_trials(
    config: str, short_logs: Path, long_context_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "hotpotqa"
    shares = ("--validation", str(SHARES["validation"]), "--test", str(SHARES["test"]))
    retro("buffer", "import", "reflexion-logs", str(short_logs), "--buffer", str(run), *shares)
    retro(
        *("run", str(ROOT / "configs" / config), "--from", "sft", "--until", "export"),
        *(f"runs={tmp_path}", "name=hotpotqa", f"model.base={long_context_model}", "model.quantization=none"),
        *("model.dtype=float32", "model.max_prompt_tokens=2000", "model.max_new_tokens=16"),
        *("model.gradient_checkpointing=false", "sft.max_steps=2", "sft.batch_size=1", "reward.max_steps=2"),
        *("reward.batch_size=2", "reward.eval_every=2", "ppo.steps=2", "ppo.contexts=2", "ppo.epochs=2"),
    )
    assert (run / "export" / "adapter" / "adapter_model.safetensors").is_file()
    reward = json.loads((run / "reward" / "reward.json").read_text(encoding="utf-8"))
    assert reward["loss"] == "bce"
    assert reward["train_terms"] > 0
    steps = {(line["stage"], line["step"]) for line in read_metrics(run)}
    assert {("sft", 2), ("reward", 2), ("ppo", 2)} <= steps
