"""The roles on one base, and the hazards that they are kept from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from tiny_models import build
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from retro.config import LoraSection, ModelSection
from retro.models.adapter_files import AdapterError, AdapterMismatchError, write_identity
from retro.models.adapters import RoleError, SharedBase
from retro.models.backbone import hidden_states
from retro.models.generation import Engine
from retro.models.loading import base_identity, load_base
from retro.models.packing import pack, response_outputs
from retro.types import Sampling

LORA = LoraSection(r=2, alpha=4)
IDS = torch.tensor([[1, 7, 40, 66, 13, 90]])
MakeBase = Callable[..., SharedBase]


@pytest.fixture
def make_base(tiny_model_dir: Path) -> MakeBase:
    def make(*roles: str, **changes: object) -> SharedBase:
        base = SharedBase.load(ModelSection(base=str(tiny_model_dir), lora=LORA, **changes), "cpu")
        for seed, role in enumerate(roles):
            base.add_role(role, LORA, seed)
            scramble(base, role, seed)
        return base

    return make


def scramble(base: SharedBase, role: str, seed: int) -> None:
    """Give a role weights under which it differs from the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in base.role_parameters(role).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def logits(base: SharedBase, role: str | None) -> Tensor:
    with base.role(role) as model:
        return model(input_ids=IDS).logits


def test_a_new_role_begins_as_the_base_and_is_drawn_from_its_seed(make_base: MakeBase) -> None:
    base = make_base()
    before = logits(base, None)
    for role, seed in (("policy", 3), ("sft", 3), ("reward", 4)):
        base.add_role(role, LORA, seed)
    assert torch.equal(logits(base, "policy"), before)
    weights = [torch.cat([p.flatten() for p in base.role_parameters(role).values()]) for role in base.roles]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_roles_do_not_disturb_one_another(make_base: MakeBase) -> None:
    base = make_base("policy", "reward")
    bare, policy, reward = (logits(base, role) for role in (None, "policy", "reward"))
    assert not torch.allclose(policy, bare)
    assert not torch.allclose(policy, reward)
    for role, expected in (("reward", reward), (None, bare), ("policy", policy)):
        assert torch.equal(logits(base, role), expected)
    assert torch.equal(base.model(input_ids=IDS).logits, bare)  # outside of a role: adapters off


def test_switching_moves_no_requires_grad(make_base: MakeBase, tmp_path: Path) -> None:
    """PEFT's own switch freezes the adapter left, and thaws a frozen one."""
    base = make_base("policy")
    base.save_role("policy", tmp_path)
    base.load_role("reference", tmp_path, trainable=False)
    for role in ("reference", None, "policy", "reference"):
        with base.role(role):
            assert all(parameter.requires_grad for parameter in base.role_parameters("policy").values())
            assert not any(parameter.requires_grad for parameter in base.role_parameters("reference").values())
    trained = {name for name, value in base.model.named_parameters() if value.requires_grad}
    assert trained
    assert all(".policy." in name for name in trained)


def test_gradients_reach_the_trained_role_alone(make_base: MakeBase) -> None:
    base = make_base("policy", "reward")
    with base.role("reward"):
        pass
    with base.role("policy", train=True) as model:
        assert model.training
        model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in base.role_parameters("policy").values())
    assert all(parameter.grad is None for parameter in base.role_parameters("reward").values())
    assert not base.model.training


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("then", [None, "reward", "outside"])
def test_a_switch_between_forward_and_backward_is_an_error(
    make_base: MakeBase, checkpointing: bool, then: str | None
) -> None:
    base = make_base("policy", "reward", gradient_checkpointing=checkpointing)
    with base.role("policy", train=True) as model:
        loss = model(input_ids=IDS).logits.logsumexp(-1).sum()
    with pytest.raises(RoleError, match=r"forward pass in role 'policy'.*same `with base.role\('policy', train=True\)"):
        if then == "outside":
            loss.backward()
        else:
            with base.role(then, train=then is not None):
                loss.backward()
    assert all(parameter.grad is None for parameter in base.role_parameters("policy").values())


def test_gradient_checkpointing_gives_the_same_gradients(make_base: MakeBase) -> None:
    found = []
    for checkpointing in (False, True):
        base = make_base("policy", gradient_checkpointing=checkpointing)
        with base.role("policy", train=True) as model:
            model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
        found.append({name: value.grad for name, value in base.role_parameters("policy").items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_a_frozen_role_records_nothing_and_cannot_be_trained(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("policy")
    base.save_role("policy", tmp_path)
    base.load_role("reference", tmp_path, trainable=False)
    assert not logits(base, "reference").requires_grad
    assert not logits(base, "policy").requires_grad
    for role in ("reference", None):
        with pytest.raises(RoleError, match="frozen"), base.role(role, train=True):
            pass


def test_roles_are_not_nested(make_base: MakeBase) -> None:
    base = make_base("policy", "reward")
    with base.role("policy"), pytest.raises(RoleError, match="inside role 'policy'"), base.role("reward"):
        pass
    with pytest.raises(RoleError, match=r"no role 'critic'; there are: policy, reward"), base.role("critic"):
        pass


def test_an_error_inside_a_role_leaves_it(make_base: MakeBase) -> None:
    base = make_base("policy")
    bare = logits(base, None)
    with pytest.raises(ZeroDivisionError), base.role("policy", train=True):
        raise ZeroDivisionError
    assert torch.equal(base.model(input_ids=IDS).logits, bare)


def test_the_reference_is_the_supervised_adapter_not_the_bare_base(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("sft")
    base.save_role("sft", tmp_path)
    base.load_role("policy", tmp_path, trainable=True)
    base.load_role("reference", tmp_path, trainable=False)
    started = logits(base, "policy")
    assert torch.equal(logits(base, "reference"), started)
    assert not torch.allclose(logits(base, None), started)
    scramble(base, "policy", 9)
    assert torch.equal(logits(base, "reference"), started)
    assert not torch.allclose(logits(base, "policy"), started)


def test_a_saved_role_loads_in_plain_peft_alone(make_base: MakeBase, tiny_model_dir: Path, tmp_path: Path) -> None:
    base = make_base("reward", "policy")
    base.save_role("policy", tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    }
    plain = load_base(ModelSection(base=str(tiny_model_dir)), "cpu")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.equal(loaded(input_ids=IDS).logits, logits(base, "policy"))
    other = make_base()
    other.load_role("policy", tmp_path / "adapter", trainable=False)
    assert torch.equal(logits(other, "policy"), logits(base, "policy"))


def test_saving_twice_writes_equal_files(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("policy")
    for name in ("one", "two"):
        base.save_role("policy", tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    targets = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def test_a_role_can_be_loaded_anew(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("one", "two")
    for role in ("one", "two"):
        base.save_role(role, tmp_path / role)
    fresh = make_base()
    engine = Engine(fresh.model, fresh.tokenizer)
    for role in ("one", "two", "one"):
        fresh.load_role("policy", tmp_path / role, trainable=False)
        assert fresh.roles == ("policy",)
        assert torch.equal(logits(fresh, "policy"), logits(base, role))
        with fresh.role("policy"):
            drawn = engine.sample([IDS[0].tolist()], 1, Sampling(max_tokens=1), [[0]])[0][0]
        assert drawn.ids == [int(logits(base, role)[0, -1].argmax())]


def test_an_adapter_of_another_base_is_refused_by_name(make_base: MakeBase, tmp_path: Path) -> None:
    other = build("llama", torch.float32, hidden_size=16, intermediate_size=32)
    other.config.name_or_path = "the-other-base"
    adapted = get_peft_model(other, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path)
    base = make_base("policy")
    before = logits(base, "policy")
    with pytest.raises(AdapterMismatchError, match="does not fit") as caught:  # by its shapes
        base.load_role("reward", tmp_path, trainable=False)
    assert base.identity in str(caught.value)
    write_identity(tmp_path, base_identity(other))
    with pytest.raises(AdapterMismatchError, match="the-other-base") as caught:
        base.load_role("reward", tmp_path, trainable=False)
    assert base.identity in str(caught.value)
    assert base.roles == ("policy",)
    assert torch.equal(logits(base, "policy"), before)
    empty = make_base()
    (tmp_path / "base.json").unlink()
    with pytest.raises(AdapterMismatchError):
        empty.load_role("policy", tmp_path, trainable=False)
    assert empty.roles == ()
    assert torch.equal(empty.model(input_ids=IDS).logits, logits(base, None))


def test_an_adapter_with_a_score_head_is_refused(make_base: MakeBase, tmp_path: Path) -> None:
    """PEFT would load it onto the causal LM and drop the head without a word."""
    base = make_base()
    config = LlamaConfig(**{**base.model.config.to_dict(), "num_labels": 1})
    classifier = LlamaForSequenceClassification(config)
    adapted = get_peft_model(classifier, LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    adapted.save_pretrained(tmp_path)
    assert any("score" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    with pytest.raises(AdapterError, match=r"SEQ_CLS.*drop its score head.*head.safetensors"):
        base.load_role("reward", tmp_path, trainable=False)


def test_folders_without_a_usable_adapter(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("policy")
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        base.load_role("sft", tmp_path, trainable=False)
    saved = tmp_path / "saved"
    base.save_role("policy", saved)
    weights = saved / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if "q_proj" not in name}, weights)
    with pytest.raises(AdapterMismatchError, match=r"weights differ.*missing in the adapter"):
        base.load_role("sft", saved, trainable=False)
    weights.write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        base.load_role("sft", saved, trainable=False)
    shutil.move(weights, saved / "adapter_model.bin")
    with pytest.raises(AdapterError, match="never from pickles"):
        base.load_role("sft", saved, trainable=False)
    assert base.roles == ("policy",)


def test_identity_is_of_the_architecture(tiny_model_dir: Path, make_base: MakeBase) -> None:
    by_path = base_identity(tiny_model_dir)
    assert by_path == base_identity(str(tiny_model_dir)) == make_base().identity == make_base("policy").identity
    scaled = make_base(rope_scaling={"rope_type": "linear", "factor": 8.0}).identity
    assert scaled != by_path


def test_adapters_are_kept_in_float32_and_compute_in_the_dtype_of_the_base(make_base: MakeBase) -> None:
    base, exact = make_base("policy", dtype="bfloat16"), make_base("policy")
    seen: set[torch.dtype] = set()
    for module in base.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.lora_A["policy"].register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    found = {}
    for name, model in (("half", base), ("exact", exact)):
        with model.role("policy", train=True):
            hidden = hidden_states(model.model, input_ids=IDS, use_cache=False)
            (hidden.float() * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
        found[name] = hidden.detach().float(), {k: v.grad for k, v in model.role_parameters("policy").items()}
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in found["half"][1].values()} == {torch.float32}
    torch.testing.assert_close(found["half"][0], found["exact"][0], rtol=0.1, atol=0.1)
    for name, gradient in found["exact"][1].items():
        similar = torch.cosine_similarity(found["half"][1][name].flatten(), gradient.flatten(), dim=0)
        assert similar > 0.98, name


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_a_base_of_sixteen_bits_that_nothing_was_asked_of_before_learns(
    make_base: MakeBase, targets: str | list[str]
) -> None:
    """Also the check of its head, and its head with an adapter of its own, compute in the dtype of the base."""
    found = []
    for dtype in ("float32", "bfloat16"):
        base = make_base(dtype=dtype)
        base.add_role("policy", LoraSection(r=2, target_modules=targets), seed=1)
        scramble(base, "policy", seed=1)
        with base.role("policy", train=True) as model:
            outputs = response_outputs(model, pack([[1, 7, 40]], [[[66, 13], [90]]]))
            outputs.log_probs.sum().backward()
        assert all(value.grad.abs().max() > 0 for value in base.role_parameters("policy").values())
        found.append(outputs.log_probs)
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05)
