"""The models on a CUDA device: the same results as on the CPU, in float32; bfloat16 and 4 bits run and learn."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks import memory_measuring
from retro.config import LoraSection, ModelSection
from retro.models import packing
from retro.models.adapters import SharedBase
from retro.models.backbone import hidden_states, logits_of, plain_model
from retro.models.bases import obstacle
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
            result = response_outputs(model, pack(PROMPTS, RESPONSES), head)
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
    packed = pack(PROMPTS, [[answer.ids for answer in group] for group in sampled])
    head = ScalarHead(base.hidden_size, zero=True).to(base.device)
    with base.role("policy", train=True) as model:
        outputs = response_outputs(model, packed, head)
        outputs.log_probs.sum().backward()
    gaps = []
    for row, answer in enumerate(chain(*sampled)):
        recomputed = outputs.log_probs[row, : len(answer.ids)].detach().cpu()
        gaps.append((recomputed - torch.tensor(answer.log_probs)).abs())
    assert torch.cat(gaps).max() < 0.1  # nats: two bfloat16 computations of the same tokens
    assert torch.cat(gaps).mean() < 0.02
    for name, value in base.role_parameters("policy").items():
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.abs().max() > 0, name


@pytest.mark.usefixtures("exact_matmuls")
@pytest.mark.parametrize("flex", [True, False])
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_shared_prefix_computes_what_each_response_alone_does(
    wider_model_dir: Path, monkeypatch: pytest.MonkeyPatch, flex: bool, dtype: str, near: float, checkpointing: bool
) -> None:
    """By FlexAttention and by SDPA; against the model's own logits, one response at a time behind its own prompt."""
    if not flex:
        monkeypatch.setattr(packing, "uses_flex_attention", lambda model: False)
    section = ModelSection(base=str(wider_model_dir), dtype=dtype, gradient_checkpointing=checkpointing)
    base = SharedBase.load(section, "cuda")
    base.add_role("policy", LoraSection(r=4), seed=1)
    with torch.no_grad():
        for value in base.role_parameters("policy").values():
            value.normal_(std=0.02)
    if flex:
        assert packing.uses_flex_attention(plain_model(base.model))
    alone: list[torch.Tensor] = []
    with base.role("policy", train=True) as model:
        for prompt, group in zip(PROMPTS, RESPONSES, strict=True):
            for response in group:
                ids = torch.tensor([prompt + response], device=base.device)
                logits = logits_of(model, hidden_states(model, input_ids=ids, use_cache=False))
                logs = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                own = logs.gather(-1, ids[0, len(prompt) :, None])[:, 0]
                own.sum().backward()
                alone.append(own.detach())
    wanted = {name: value.grad.clone() for name, value in base.role_parameters("policy").items()}
    for value in base.role_parameters("policy").values():
        value.grad = None
    with base.role("policy", train=True) as model:
        outputs = response_outputs(model, pack(PROMPTS, RESPONSES))
        outputs.log_probs.sum().backward()
    for row, own in enumerate(alone):
        torch.testing.assert_close(outputs.log_probs[row, : len(own)], own, rtol=near, atol=near)
    for name, value in base.role_parameters("policy").items():
        distance = (value.grad - wanted[name]).norm() / wanted[name].norm()
        assert distance < near, f"{name}: {float(distance):.2g}"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_update_takes_no_more_memory_than_its_tensors(wider_model_dir: Path, quantization: str) -> None:
    """The device's peak against the bytes a token that benchmarks/memory.py counts, with room for kernels' scratch."""
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    section = ModelSection(
        base=str(wider_model_dir), dtype="bfloat16", quantization=quantization, gradient_checkpointing=True
    )
    packed = pack([[1 + place % 100 for place in range(800)]] * 16, [[[5] * 64] * 4] * 16)
    peaks = {}
    for device in ("cpu", "cuda"):
        base = SharedBase.load(section, device)
        memory_measuring.add_adapter(base, LoraSection(r=16), seed=1)
        if device == "cpu":
            counted = memory_measuring.measure_pass(base, 2, packed)
            peaks[device] = counted.peak + counted.scratch
            continue
        batch = packed.to(base.device)
        for _ in range(2):  # compiled and warmed up in the first
            for value in base.role_parameters(memory_measuring.ROLE).values():
                value.grad = torch.zeros_like(value)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with base.role(memory_measuring.ROLE, train=True) as model:
                response_outputs(model, batch).log_probs.sum().backward()
            torch.cuda.synchronize()
            peaks[device] = torch.cuda.max_memory_allocated() - before
    assert peaks["cuda"] < 1.25 * peaks["cpu"] + 64 * 2**20


@pytest.mark.parametrize(
    ("dtype", "quantization"), [("float32", "none"), ("bfloat16", "none"), ("float16", "none"), ("bfloat16", "nf4")]
)
def test_the_self_test_finds_a_base_exact_on_shared_prompts(
    wider_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, quantization: str
) -> None:
    """By the paths that are used here: FlexAttention and its compiler included."""
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("RETRO_CACHE", str(tmp_path))
    base = SharedBase.load(ModelSection(base=str(wider_model_dir), dtype=dtype, quantization=quantization), "cuda")
    for use in ("training", "sampling"):
        assert obstacle(plain_model(base.model), use, 20) is None
