"""Bases with random weights built on a device, with PPO's roles on them, and work for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from benchmarks.pipeline_shared_base import SharedBaseSide
from benchmarks.pipeline_work import Work
from benchmarks.ppo_models import (
    Sizes,
    TokenModels,
    llama_config,
    random_tokens,
    run_config,
    token_contexts,
    word_tokenizer,
)
from retro.config import ConfigError, RunConfig
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead
from retro.models.limits import prompt_tokens
from retro.models.loading import resolve_device
from retro.training.policy.groups import Response
from retro.types import derive_seed

WEIGHT_SCALE = 0.02
"""Of the weights of LoRA's second matrix, which are zero in a new adapter."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A base's numbers: its dtype, whether its linear maps have 4 bits, whether activations are computed again."""

    name: str
    dtype: str
    quantised: bool
    checkpointing: bool


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What to measure, where, and how often."""

    sizes: Sizes
    shape: Mapping[str, int]
    vocabulary: int
    token_budget: int
    repeats: int
    device: str
    seed: int = 0


def find_device(name: str) -> torch.device:
    """Raises ConfigError where a CUDA device is meant and there is none, saying what is needed."""
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "no CUDA device here: this table needs one NVIDIA GPU (24 GiB for NF4, 80 GiB for bf16 without "
            "checkpointing) and a CUDA build of torch, and bitsandbytes for NF4; "
            "`--device cpu --tiny` shows that the code runs, and measures nothing"
        )
    return resolve_device(name)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_settings(plan: GpuPlan, setting: Setting) -> RunConfig:
    return run_config(
        plan.sizes,
        f"seed={plan.seed}",
        f"ppo.token_budget={plan.token_budget}",
        f"model.dtype={setting.dtype}",
        f"model.quantization={'nf4' if setting.quantised else 'none'}",
        f"model.gradient_checkpointing={str(setting.checkpointing).lower()}",
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """A base with its roles and heads; sides of different sizes stand on the same one."""

    base: SharedBase
    value_head: ScalarHead
    reward_head: ScalarHead

    def side(self, config: RunConfig, copies: int = 1) -> SharedBaseSide:
        return SharedBaseSide(config, self.base, self.value_head, self.reward_head, TokenModels, copies)


def build_bench(plan: GpuPlan, setting: Setting, device: torch.device) -> Bench:
    """Draw the weights on the device: nothing is read, nothing is downloaded."""
    config = run_settings(plan, setting)
    length = prompt_tokens(config.model, context=None) + config.model.max_new_tokens
    torch.manual_seed(derive_seed(plan.seed, "benchmark", "base") % 2**63)
    described = llama_config(dict(plan.shape), plan.vocabulary, length)
    described._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, setting.dtype))
    try:
        with device:
            model = LlamaForCausalLM(described)
    finally:
        torch.set_default_dtype(before)
    if setting.quantised:
        quantise(model, getattr(torch, setting.dtype), device)
    if setting.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base = SharedBase(model.eval(), word_tokenizer(plan.vocabulary))
    _add_roles(base, config)
    value_head, reward_head = (ScalarHead(base.hidden_size, seed=number).to(device) for number in range(2))
    return Bench(base, value_head, reward_head)


def quantise(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
    """Every linear map but the output layer to NF4 with double quantisation, one by one, as a quantised load does."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for layer in model.get_decoder().layers:
        for parent in layer.modules():
            for name, child in list(parent.named_children()):
                if type(child) is not nn.Linear:
                    continue
                small = Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    quant_type="nf4",
                    device="meta",
                )
                weight = Params4bit(child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
                small.weight = weight.to(device)
                # A kernel without a backward, which bitsandbytes chooses on some processors (see retro.models.loading).
                small.support_avx512bf16_for_cpu = False
                setattr(parent, name, small)
    model.is_loaded_in_4bit = True  # PEFT chooses its layers by it


def _add_roles(base: SharedBase, config: RunConfig) -> None:
    """A policy whose adapter changes something, and frozen copies of it as reference and reward model."""
    base.add_role("policy", config.model.lora, derive_seed(config.seed, "benchmark", "policy"))
    generator = torch.Generator().manual_seed(config.seed)
    for name, parameter in base.role_parameters("policy").items():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator) * WEIGHT_SCALE
            parameter.data.copy_(noise)
    with TemporaryDirectory() as folder:
        base.save_role("policy", Path(folder))
        for role in ("reference", "reward"):
            base.load_role(role, Path(folder), trainable=False)


def given_work(plan: GpuPlan, config: RunConfig) -> Work:
    """Random prompts, and random responses that both sides score and learn from."""
    sizes = plan.sizes
    prompts = random_tokens(plan.vocabulary, sizes.lengths, derive_seed(plan.seed, "prompts"))
    responses = random_tokens(plan.vocabulary, [sizes.response] * sizes.samples, derive_seed(plan.seed, "given"))
    answers = [
        Response(
            i // sizes.group, i % sizes.group, tuple(ids), (0.0,) * len(ids), " ".join(f"w{t}" for t in ids), "length"
        )
        for i, ids in enumerate(responses)
    ]
    return Work(config, token_contexts(prompts), answers)
