"""The models on a CUDA device: the same results as on the CPU, in float32; bfloat16 and 4 bits run and learn."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from retro.config import LoraSection, ModelSection
from retro.models.adapters import SharedBase
from retro.models.generation import Engine
from retro.models.heads import ScalarHead
from retro.models.packing import pack, response_outputs
from retro.types import Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PROMPTS = [[1, *range(10, 40)], [1, 50, 60], [1, *range(20, 90, 3)]]
RESPONSES = [[[5, 6, 7], [8, 9]], [[11, 12, 13, 14]], [[15], [16, 17]]]


@pytest.fixture
def exact_matmuls() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="module")
def wider_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for blocks of 64 weights in 4 bits."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wider")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("exact_matmuls")
def test_generation_is_that_of_the_cpu(tiny_model_dir: Path) -> None:
    sampling = Sampling(1.0, max_tokens=12)
    seeds = [[3 * place + index for index in range(3)] for place in range(3)]
    found = {}
    for device in ("cpu", "cuda"):
        base = SharedBase.load(ModelSection(base=str(tiny_model_dir)), device)
        engine = Engine(base.model, base.tokenizer)
        sampled = engine.sample(PROMPTS, 3, sampling, seeds)
        turns = []
        prompts = [list(prompt) for prompt in PROMPTS]
        for _ in range(3):
            requests = [(f"s{i}", prompt, Sampling(max_tokens=4 + i)) for i, prompt in enumerate(prompts)]
            answers = engine.complete(requests)
            turns.append([answer.ids for answer in answers])
            prompts = [prompt + answer.ids + [5, 6] for prompt, answer in zip(prompts, answers, strict=True)]
        found[device] = (sampled, turns)
    assert found["cpu"][1] == found["cuda"][1]
    for left, right in zip(chain(*found["cpu"][0]), chain(*found["cuda"][0]), strict=True):
        assert left.ids == right.ids
        assert left.log_probs == pytest.approx(right.log_probs, abs=1e-3)


@pytest.mark.usefixtures("exact_matmuls")
def test_packed_outputs_are_those_of_the_cpu(tiny_model_dir: Path) -> None:
    outputs = {}
    for device in ("cpu", "cuda"):
        base = SharedBase.load(ModelSection(base=str(tiny_model_dir)), device)
        base.add_role("policy", LoraSection(r=2), seed=1)
        head = ScalarHead(base.hidden_size, seed=1).to(base.device)
        with base.role("policy", train=True) as model:
            result = response_outputs(model, pack(PROMPTS, RESPONSES, 0), head)
            result.log_probs.sum().backward()
        gradients = {name: value.grad.cpu() for name, value in base.role_parameters("policy").items()}
        outputs[device] = (result.log_probs.cpu(), result.values.cpu(), gradients)
    for place in range(2):
        torch.testing.assert_close(outputs["cpu"][place], outputs["cuda"][place], rtol=1e-3, atol=1e-4)
    for name, gradient in outputs["cpu"][2].items():
        torch.testing.assert_close(gradient, outputs["cuda"][2][name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_sixteen_and_four_bits_sample_and_learn(wider_model_dir: Path, quantization: str) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    section = ModelSection(
        base=str(wider_model_dir), dtype="bfloat16", quantization=quantization, gradient_checkpointing=True
    )
    base = SharedBase.load(section, "cuda")
    base.add_role("policy", LoraSection(r=4), seed=1)
    with torch.no_grad():
        for value in base.role_parameters("policy").values():
            value.normal_(std=0.02)
    engine = Engine(base.model, base.tokenizer)
    with base.role("policy"):
        sampled = engine.sample(
            PROMPTS, 4, Sampling(1.0, max_tokens=16), [[4 * i + j for j in range(4)] for i in range(3)]
        )
    packed = pack(PROMPTS, [[answer.ids for answer in group] for group in sampled], 0)
    head = ScalarHead(base.hidden_size, zero=True).to(base.device)
    with base.role("policy", train=True) as model:
        outputs = response_outputs(model, packed, head)
        outputs.log_probs.sum().backward()
    for row, answer in enumerate(chain(*sampled)):
        recomputed = outputs.log_probs[row, : len(answer.ids)].detach().cpu()
        assert recomputed == pytest.approx(torch.tensor(answer.log_probs).numpy(), abs=0.1)
    assert all(value.grad.isfinite().all() for value in base.role_parameters("policy").values())
