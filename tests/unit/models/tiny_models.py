"""Random models of both kinds that the project is tested with, small enough for float64."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config
from transformers.models.llama import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2 import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

SHAPE = {
    "vocab_size": 118,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def build(kind: str, dtype: torch.dtype = torch.float64, **changes: object) -> PreTrainedModel:
    """A random model that is the same for the same arguments."""
    torch.manual_seed(1)
    shape = SHAPE | changes
    model = LlamaForCausalLM(LlamaConfig(**shape)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**shape))
    if dtype == torch.float64:
        _exact_norms(model)
    return model.to(dtype).eval().requires_grad_(False)


def _exact_norms(module: nn.Module) -> None:
    """transformers' norms compute in float32 whatever the dtype, and so do their gradients; torch's own does not."""
    for name, child in module.named_children():
        if isinstance(child, (LlamaRMSNorm, Qwen2RMSNorm)):
            setattr(module, name, nn.RMSNorm(len(child.weight), eps=child.variance_epsilon))
        else:
            _exact_norms(child)
