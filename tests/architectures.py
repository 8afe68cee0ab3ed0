"""Tiny random models of many architectures, with every border that a real one has: windows, chunks, hybrid layers."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WINDOW = 24
"""Of the layers that have a window or a chunk, tokens."""
CONTEXT = 256
VOCABULARY = 120

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # other names for the same
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": CONTEXT,
    "n_inner": 48,
    "d_model": 32,
    "d_ff": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "word_embed_proj_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": CONTEXT,
    "rotary_dim": 8,
    "kv_channels": 8,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "dense_intermediate_size": 48,
    "expert_ffn_hidden_size": 16,
    "intermediate_size_mlp": 48,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": WINDOW,
    "index_n_heads": 2,
    "index_head_dim": 8,
    # windows
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "window_size": WINDOW,
    "attention_window_size": WINDOW,
    # recurrent layers
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "state_size": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # gemma 3n
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
}
"""Every key that an architecture's configuration has is set to this."""

_LATENT = {"axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "minicpm3", "youtu"}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere2": _ALTERNATING,
    "cwm": _ALTERNATING,
    "exaone4": _ALTERNATING,
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma2": _ALTERNATING,
    "gemma3_text": _ALTERNATING,
    "gemma3n_text": {**_ALTERNATING, "intermediate_size": [48, 48], "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_oss": _ALTERNATING,
    "granite": {"logits_scaling": 8.0},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minimax": _HYBRID,
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"]},
    "olmo3": _ALTERNATING,
    "olmo_hybrid": _HYBRID,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "seed_oss": {"residual_dropout": 0.1, "attention_dropout": 0.1},
    "smollm3": {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
}

NAMES = (
    *("afmoe", "apertus", "arcee", "bamba", "beam", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2"),
    *("cohere2_moe", "cwm", "deepseek_v2", "deepseek_v3", "deepseek_v32", "diffllama", "doge", "dots1", "ernie4_5"),
    *("ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "gemma", "gemma2"),
    *("gemma3_text", "gemma3n_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neo"),
    *("gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense"),
    *("hunyuan_v1_moe", "hy_v3", "hyperclovax", "jais2", "jamba", "jetmoe", "kolibri1", "laguna", "lfm2", "lfm2_moe"),
    *("llama", "llama4_text", "mamba", "mamba2", "mellum", "minicpm3", "minimax", "minimax_m2", "ministral"),
    *("ministral3", "mistral", "mixtral", "modernbert-decoder", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo"),
    *("olmo2", "olmo3", "olmo_hybrid", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe"),
    *("qwen3", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "seed_oss", "smollm3", "solar_open"),
    *("stablelm", "starcoder2", "xglm", "axk1", "youtu"),
)
"""``model_type`` of what the tests know."""


TARGETS: dict[str, str | list[str]] = {
    "falcon_h1": ["q_proj", "v_proj"],
    "falcon_mamba": ["in_proj", "x_proj"],
    "gemma3n_text": ["q_proj", "v_proj"],  # in training it goes past adapters on its coefficients
    "llama4_text": ["q_proj", "v_proj"],
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    "nemotron_h": ["q_proj", "v_proj"],
    "phimoe": ["q_proj", "v_proj"],
}
"""``model.lora.target_modules`` of those that are refused with ``all-linear``."""

REFUSED: dict[str, str] = {
    "deepseek_v32": r"beyond \d+ tokens its sparse attention depends on later tokens",
    "minimax": "what it samples is not what its forward pass says",
    "modernbert-decoder": "its logits are not its output layer applied to its last hidden state",
}
"""Words of the sentence by which the self-test refuses an architecture."""


def known(kind: str) -> bool:
    """Whether this version of transformers has the architecture."""
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind in CONFIG_MAPPING


def pinned() -> bool:
    """Whether transformers and PEFT are those of constraints.txt, about which the lists speak. Others may compute an
    architecture in another way, or refuse other adapters."""
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return all(f"{package}=={version(package)}" in lines for package in ("transformers", "peft"))


def make(kind: str, **changes: Any) -> PreTrainedModel:
    """A random model in float32, the same for the same arguments; attention as :func:`load_base` chooses it."""
    configuration = CONFIG_MAPPING[kind]
    default = configuration()
    given = {key: value for key, value in SHAPE.items() if hasattr(default, key)}
    if kind in _LATENT:
        given |= {"num_key_value_heads": 4}
        given.pop("head_dim", None)
    if kind == "falcon":
        given.pop("head_dim", None)
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        configuration(**given | OVERRIDES.get(kind, {}) | changes)
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():  # norms and biases, too, are not what they begin as
            if value.is_floating_point():
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return model.eval().requires_grad_(False)
