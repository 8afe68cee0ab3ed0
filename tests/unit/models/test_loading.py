"""Loading: dtypes, 4 bits, rotary scaling, and errors that name the remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import build
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from retro.actors.local import LocalOptions
from retro.config import ConfigError, LoraSection, ModelSection
from retro.models.adapter_files import AdapterMismatchError
from retro.models.adapters import SharedBase
from retro.models.generation import Engine
from retro.models.heads import ScalarHead
from retro.models.loading import (
    base_identity,
    load_base,
    load_model_config,
    load_tokenizer,
    require_trainable,
    resolve_device,
    same_base,
)
from retro.models.packing import last_token_scores, pack, response_outputs
from retro.types import Sampling
from tests.architectures import make

IDS = torch.tensor([[1, 7, 40, 66, 13, 90]])


def test_a_base_is_frozen_and_in_its_dtype(tiny_model_dir: Path) -> None:
    model = load_base(LocalOptions(model=str(tiny_model_dir), dtype="bfloat16"), "cpu")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_four_bits_compute_nearly_the_same_and_take_adapters(tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = build("llama", torch.float32, hidden_size=128, intermediate_size=256, initializer_range=0.05)
    model.save_pretrained(tmp_path)
    load_tokenizer(ModelSection(base=str(tiny_model_dir))).save_pretrained(tmp_path)
    section = ModelSection(base=str(tmp_path), quantization="nf4")
    full = load_base(ModelSection(base=str(tmp_path)), "cpu")
    base = SharedBase.load(section, "cpu")
    assert type(base.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    exact, near = full(input_ids=IDS).logits, base.model(input_ids=IDS).logits
    assert torch.nn.functional.cosine_similarity(exact.flatten(), near.flatten(), dim=0) > 0.9
    assert same_base(base.identity, base_identity(tmp_path))  # 4 bits or not, the adapter fits


def test_gradients_pass_through_four_bits_also_after_sampling(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The adapter's gradients are those on the same weights in full precision."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    build("llama", torch.float32, hidden_size=128, intermediate_size=256, initializer_range=0.05).save_pretrained(
        tmp_path
    )
    load_tokenizer(ModelSection(base=str(tiny_model_dir))).save_pretrained(tmp_path)
    quantised = SharedBase.load(ModelSection(base=str(tmp_path), quantization="nf4"), "cpu")
    exact = SharedBase.load(ModelSection(base=str(tmp_path)), "cpu")
    with torch.no_grad():
        for name, module in quantised.model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                exact.model.get_submodule(name).weight.copy_(weight)
    found = []
    for base in (quantised, exact):
        base.add_role("policy", LoraSection(r=2), seed=0)
        with base.role("policy") as model:
            model(input_ids=IDS)
        with base.role("policy", train=True) as model:
            model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
        found.append({name: value.grad for name, value in base.role_parameters("policy").items() if "lora_B" in name})
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-4)


def test_rotary_scaling_is_put_in(tiny_model_dir: Path) -> None:
    """Linear scaling by f is the unscaled model at positions divided by f."""
    plain = load_base(ModelSection(base=str(tiny_model_dir)), "cpu")
    scaled = load_base(
        ModelSection(base=str(tiny_model_dir), rope_scaling={"rope_type": "linear", "factor": 8.0}), "cpu"
    )
    assert scaled.config.rope_parameters["rope_theta"] == plain.config.rope_parameters["rope_theta"]
    positions = torch.arange(IDS.shape[1])[None]
    divided = scaled(input_ids=IDS, position_ids=8 * positions).logits
    torch.testing.assert_close(divided, plain(input_ids=IDS, position_ids=positions).logits)
    assert not torch.allclose(scaled(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_linear_scaling_lengthens_the_context_and_what_is_generated(tiny_model_dir: Path) -> None:
    prompt = [1 + place % 100 for place in range(1100)]
    for scaling, context in (
        (None, 1024),
        ({"rope_type": "linear", "factor": 4.0}, 4096),
        ({"rope_type": "dynamic", "factor": 4.0}, 1024),
    ):
        section = ModelSection(base=str(tiny_model_dir), rope_scaling=scaling)
        engine = Engine(load_base(section, "cpu"), load_tokenizer(section))
        assert engine.context == context
        if context > len(prompt):
            assert engine.complete([("", prompt, Sampling(max_tokens=2))])[0].ids
        else:
            with pytest.raises(ValueError, match="1100 tokens leaves no room in the model's context of 1024"):
                engine.complete([("", prompt, Sampling(max_tokens=2))])


def test_a_base_that_is_scaled_already_is_lengthened_by_the_rest(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "scaled")
    twice = ModelSection(base=str(tiny_model_dir), rope_scaling={"rope_type": "linear", "factor": 2.0})
    load_model_config(twice).save_pretrained(tmp_path / "scaled")
    found = load_model_config(
        ModelSection(base=str(tmp_path / "scaled"), rope_scaling={"rope_type": "linear", "factor": 8.0})
    )
    assert found.max_position_embeddings == 8 * 1024


@pytest.mark.parametrize("scaling", [{"rope_type": "sideways", "factor": 2.0}, {"rope_type": "linear"}])
def test_a_rotary_scaling_that_is_none_is_an_error(tiny_model_dir: Path, scaling: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model\.rope_scaling"):
        load_base(ModelSection(base=str(tiny_model_dir), rope_scaling=scaling), "cpu")


def test_a_model_that_is_not_there(tmp_path: Path, tiny_model_dir: Path) -> None:
    for load in (load_base, load_tokenizer):
        for name in (str(tmp_path / "gone"), "no-such/gone"):
            with pytest.raises(ConfigError, match=r"gone.*cannot be loaded") as caught:
                load(ModelSection(base=name))
            assert "\n" not in str(caught.value)
    shutil.copytree(tiny_model_dir, tmp_path / "pickled")
    shutil.move(tmp_path / "pickled" / "model.safetensors", tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_base(ModelSection(base=str(tmp_path / "pickled")), "cpu")


def test_a_tokenizer_without_padding_pads_with_its_end(tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(LocalOptions(model=str(tiny_model_dir)))
    assert tokenizer.pad_token == "<pad>"
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(LocalOptions(model=str(tmp_path))).pad_token == "<eos>"


def test_an_identity_names_the_revision(tiny_model_dir: Path) -> None:
    plain, revised = base_identity(tiny_model_dir), base_identity(tiny_model_dir, "abc123")
    assert revised == plain.replace("#", "@abc123#")
    assert same_base(plain, revised)
    section = ModelSection(base=str(tiny_model_dir), revision="abc123")
    assert SharedBase.load(section, "cpu").identity == revised


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="CUDA devices; use auto or cpu"):
        resolve_device("cuda:99")
    with pytest.raises(ConfigError, match="not a device"):
        resolve_device("toaster")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_adapters_on_all_linear_layers_or_a_list(
    kind: str, targets: str | list[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    base = SharedBase(build(kind, torch.float32), tokenizer)
    base.add_role("policy", LoraSection(r=4, target_modules=targets), seed=0)
    found = {name.rsplit(".", 3)[-3] for name in base.role_parameters("policy")}
    everywhere = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert found == (everywhere if targets == "all-linear" else set(targets))
    assert all(value.dtype == torch.float32 for value in base.role_parameters("policy").values())


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_checkpointing_is_in_effect_where_ppo_and_the_reward_model_learn(
    tiny_model_dir: Path, tmp_path: Path, quantization: str
) -> None:
    """Of what the layers save, their inputs alone are left; the gradients are the same."""
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    build("llama", torch.float32, hidden_size=128, intermediate_size=256).save_pretrained(tmp_path)
    load_tokenizer(ModelSection(base=str(tiny_model_dir))).save_pretrained(tmp_path)
    packed = pack([[1, *range(5, 60)]], [[[7, 8, 9], [10, 11]]])
    saved: dict[tuple[str, bool], int] = {}
    gradients: dict[tuple[str, bool], list[torch.Tensor]] = {}
    for checkpointing in (False, True):
        section = ModelSection(base=str(tmp_path), quantization=quantization, gradient_checkpointing=checkpointing)
        base = SharedBase.load(section, "cpu")
        base.add_role("policy", LoraSection(r=2), seed=0)
        head = ScalarHead(base.hidden_size)
        for name in ("ppo", "reward"):
            storages: dict[int, int] = {}

            def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor.detach()

            with base.role("policy", train=True) as model:
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    if name == "ppo":
                        loss = response_outputs(model, packed).log_probs.sum()
                    else:
                        loss = last_token_scores(model, packed, head).sum()
                loss.backward()
            weights = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
            saved[name, checkpointing] = sum(size for key, size in storages.items() if key not in weights)
            own = list(base.role_parameters("policy").values())
            gradients[name, checkpointing] = [value.grad.clone() for value in own if value.grad is not None]
            assert len(gradients[name, checkpointing]) == len(own)
            for value in own:
                value.grad = None
    for name in ("ppo", "reward"):
        assert saved[name, True] < saved[name, False] / 4
        for left, right in zip(gradients[name, False], gradients[name, True], strict=True):
            torch.testing.assert_close(left, right)


def saved(kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase, **changes: object) -> str:
    make(kind, vocab_size=len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["opt", "gpt2", "gpt_bigcode", "seed_oss"])
def test_a_base_has_no_dropout_of_its_own(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Models that keep dropout as a number train with it otherwise: a policy would not agree with itself."""
    base = SharedBase.load(ModelSection(base=saved(kind, tmp_path, tokenizer)), "cpu")
    base.add_role("policy", LoraSection(r=2), seed=0)
    packed = pack([[5, 6, 7, 8]], [[[9, 10], [11]]])
    with base.role("policy") as model:
        evaluated = response_outputs(model, packed).log_probs
    with base.role("policy", train=True) as model:
        trained = response_outputs(model, packed).log_probs
    assert torch.equal(evaluated, trained.detach())


def longrope() -> dict[str, object]:
    rope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 2.0, 4.0, 9.0]}
    return {"original_max_position_embeddings": 64, "rope_scaling": rope, "sliding_window": None}


@pytest.mark.parametrize(("needed", "context"), [(64, 64), (65, 256)])
def test_longrope_keeps_to_one_set_of_frequencies(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, needed: int, context: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What a sequence computes depends neither on its neighbours nor on how long it will become, and is what the model
    itself computes for sequences on that side of the border."""
    name = saved("phi3", tmp_path, tokenizer, **longrope())
    with caplog.at_level("INFO", logger="retro.models.rotary"):
        section = ModelSection(base=name, max_prompt_tokens=needed - 14, max_new_tokens=14)
        base = SharedBase.load(section, "cpu")
    assert ("short_factor" if needed == 64 else "long_factor") in caplog.text
    engine = Engine(base.model, base.tokenizer)
    assert engine.context == context
    original = AutoModelForCausalLM.from_pretrained(name, attn_implementation="sdpa").eval()
    longest = 64 if needed == 64 else 120
    ids = torch.randint(5, 100, (1, longest))
    with torch.no_grad():
        torch.testing.assert_close(base.model(input_ids=ids).logits, original(input_ids=ids).logits)
    prompts = [ids[0, :7].tolist(), ids[0, : longest - 14].tolist()]
    together = engine.sample(prompts, 2, Sampling(1.0, max_tokens=14), [[1, 2], [3, 4]])
    with torch.no_grad():
        packed = response_outputs(base.model, pack(prompts, [[answer.ids for answer in row] for row in together]))
        for place, prompt in enumerate(prompts):
            apart = response_outputs(base.model, pack([prompt], [[answer.ids for answer in together[place]]]))
            for row, answer in enumerate(together[place]):
                length = len(answer.ids)
                found, single = packed.log_probs[2 * place + row, :length], apart.log_probs[row, :length]
                torch.testing.assert_close(found, single, rtol=0, atol=1e-4)
                torch.testing.assert_close(torch.tensor(answer.log_probs), found, rtol=0, atol=1e-4, check_dtype=False)


def test_an_adapter_of_the_other_frequencies_is_refused_with_the_remedy(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    name = saved("phi3", tmp_path / "base", tokenizer, **longrope())
    short = SharedBase.load(ModelSection(base=name, max_prompt_tokens=50, max_new_tokens=14), "cpu")
    short.add_role("policy", LoraSection(r=2), seed=0)
    short.save_role("policy", tmp_path / "adapter")
    long = SharedBase.load(ModelSection(base=name, max_prompt_tokens=51, max_new_tokens=14), "cpu")
    with pytest.raises(AdapterMismatchError, match=r"max_prompt_tokens and model\.max_new_tokens as in its training"):
        long.load_role("policy", tmp_path / "adapter", trainable=False)
    short.load_role("policy", tmp_path / "adapter", trainable=False)


def test_float16_does_not_train() -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype=float16 does not train.*bfloat16"):
        require_trainable(ModelSection(dtype="float16"))
    for dtype in ("float32", "bfloat16"):
        require_trainable(ModelSection(dtype=dtype))


def test_attention_with_a_cap_is_computed_by_the_models_own_code(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = load_base(ModelSection(base=saved("gemma2", tmp_path, tokenizer)), "cpu")
    assert model.config._attn_implementation == "eager"


def test_how_to_sample_is_not_taken_from_a_models_files(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Qwen's generation_config.json sets a penalty for repetitions; the end tokens there are the model's."""
    name = saved("llama", tmp_path, tokenizer)
    GenerationConfig(repetition_penalty=1.5, temperature=0.3, do_sample=True, eos_token_id=[2, 77]).save_pretrained(
        name
    )
    generation = load_base(ModelSection(base=name), "cpu").generation_config
    assert generation.eos_token_id == [2, 77]
    assert generation.repetition_penalty is generation.temperature is None


def test_chat_template_kwargs_that_no_template_reads_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.chat_template_kwargs: the tokenizer of .* has no chat template"):
        load_tokenizer(ModelSection(base=str(tiny_model_dir), chat_template_kwargs={"enable_thinking": False}))
    tokenizer = load_tokenizer(LocalOptions(model=str(tiny_model_dir)))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ enable_thinking }}"
    tokenizer.save_pretrained(tmp_path)
    load_tokenizer(LocalOptions(model=str(tmp_path), chat_template_kwargs={"enable_thinking": False}))
    with pytest.raises(ConfigError, match=r"actor\.chat_template_kwargs: .* does not mention thinking"):
        load_tokenizer(LocalOptions(model=str(tmp_path), chat_template_kwargs={"thinking": False}))
