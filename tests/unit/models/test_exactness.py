"""The self-test of a base: what it finds, what it does about it, and when it is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from retro.config import LoraSection
from retro.models import exactness
from retro.models.adapters import SharedBase
from retro.models.backbone import UnsupportedModelError, plain_model
from retro.models.bases import shares_prompts
from retro.models.exactness import check_base, check_sampling
from retro.models.own_pass import Texts
from retro.models.packing import pack, response_outputs

LORA = LoraSection(r=4)


@pytest.fixture(autouse=True)
def _nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRO_CACHE", str(tmp_path / "cache"))


def embed(model: PreTrainedModel, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Let ``change`` rewrite the embeddings (B, T, H)."""
    layer = model.get_input_embeddings()
    layer.register_forward_hook(lambda module, args, output: change(module, output))


def shares(base: SharedBase) -> dict[str, bool]:
    return {use: shares_prompts(plain_model(base.model), use, 20) for use in ("training", "sampling")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_an_exact_base_shares_prompts_in_every_dtype(
    kind: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> None:
    base = SharedBase(build(kind, dtype, initializer_range=0.05), tokenizer)
    check_base(base, LORA)
    assert shares(base) == {"training": True, "sampling": True}
    assert base.roles == ()
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_a_short_context_is_enough(tokenizer: PreTrainedTokenizerBase) -> None:
    base = SharedBase(build("llama", max_position_embeddings=8), tokenizer)
    check_base(base, LORA)
    assert shares(base) == {"training": True, "sampling": True}


def test_the_test_leaves_the_base_as_it_was(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    base = SharedBase(build(kind), tokenizer)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    random = torch.random.get_rng_state()
    check_base(base, LORA)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(random, torch.random.get_rng_state())
    assert not base.model.training


@pytest.mark.parametrize("first_row_is_zero", [False, True])
def test_a_changed_output_layer_is_found_whatever_the_first_embedding_is(
    tokenizer: PreTrainedTokenizerBase, first_row_is_zero: bool
) -> None:
    """A scale that the configuration does not tell. A row of zeros gives the same logits with and without it."""
    model = build("llama")
    if first_row_is_zero:
        with torch.no_grad():
            model.get_input_embeddings().weight[0] = 0
    own: Callable[..., Any] = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = 3 * output.logits
        return output

    model.forward = forward
    with pytest.raises(UnsupportedModelError, match=r"'llama'.*its logits are not its output layer applied") as caught:
        check_base(SharedBase(model, tokenizer), LORA)
    assert "\n" not in str(caught.value)


def test_what_is_not_exact_on_shared_prompts_takes_the_plain_path(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that goes by a token's place in its row, not by its position: the two differ in a packed row alone."""
    model = build("llama", torch.float32)
    places = torch.randn(400, 32)

    def by_place(module: nn.Module, output: Tensor) -> Tensor:
        return output + places[: output.shape[1]]

    embed(model, by_place)
    own = model.generate

    def generate_whole_rows(generation_config: GenerationConfig, **kwargs: Any) -> Any:
        generation_config.use_cache = False  # with a cache each token comes in a row of its own
        return own(generation_config=generation_config, **kwargs)

    model.generate = generate_whole_rows
    base = SharedBase(model, tokenizer)
    with caplog.at_level("WARNING", logger="retro.models.exactness"):
        check_base(base, LORA)
    assert shares(base) == {"training": False, "sampling": False}
    for use, record in zip(("sampling", "training"), caplog.records, strict=True):
        assert "differs on shared prompts from itself alone" in record.getMessage()
        assert f"{use} does not share prompts, which is slower" in record.getMessage()
    prompt, responses = [5, 6, 7], [[8, 9], [10, 11, 12]]
    found = response_outputs(model, pack([prompt], [responses])).log_probs
    for row, response in enumerate(responses):
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, 2:-1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(found[row, : len(response)], expected, rtol=0, atol=1e-5)


def neighbours(module: nn.Module, output: Tensor) -> Tensor:
    return output + output.mean(dim=(0, 1))


def noise(module: nn.Module, output: Tensor) -> Tensor:
    return output + torch.randn_like(output) if module.training else output


def detached(module: nn.Module, output: Tensor) -> Tensor:
    return output.detach()


@pytest.mark.parametrize(
    ("layer", "change", "words"),
    [
        ("model.embed_tokens", neighbours, "what it samples is not what its forward pass says"),
        ("model.embed_tokens", noise, "its log-probabilities in training mode differ from those in evaluation mode"),
        ("model.norm", detached, "its gradients do not reach its adapters|does not require grad"),
    ],
)
def test_what_is_not_exact_on_the_plain_path_either_is_refused(
    tokenizer: PreTrainedTokenizerBase, layer: str, change: Callable[[nn.Module, Tensor], Tensor], words: str
) -> None:
    model = build("llama", torch.float32)
    model.get_submodule(layer).register_forward_hook(lambda module, args, output: change(module, output))
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        check_base(SharedBase(model, tokenizer), LORA)
    assert "\n" not in str(caught.value) and "'llama'" in str(caught.value)


def test_log_probabilities_that_are_not_numbers_are_not_taken_for_exact(tokenizer: PreTrainedTokenizerBase) -> None:
    """In the second turn of a conversation alone, too."""
    model = build("llama", torch.float32)
    longest = max(len(prompt) for prompt in Texts.of(model, tokenizer).prompts)

    def broken(module: nn.Module, output: Tensor) -> Tensor:
        return output * torch.nan if output.shape[1] > longest else output

    embed(model, broken)
    with pytest.raises(UnsupportedModelError):
        check_sampling(model, tokenizer)


def test_what_does_not_train_is_not_tested_for_its_gradients(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("llama", torch.float16, initializer_range=0.05)
    model.model.norm.register_forward_hook(lambda module, args, output: InfiniteGradient.apply(output))
    check_base(SharedBase(model, tokenizer), LORA)


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 0


def test_gradients_that_are_not_finite_are_found(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("llama", torch.float32)
    model.model.norm.register_forward_hook(lambda module, args, output: InfiniteGradient.apply(output))
    with pytest.raises(UnsupportedModelError, match="cannot be trained: its gradients are not finite"):
        check_base(SharedBase(model, tokenizer), LORA)


def test_lack_of_memory_is_not_taken_for_a_property_of_the_model(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("llama")

    def full(module: nn.Module, output: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    embed(model, full)
    with pytest.raises(torch.OutOfMemoryError):
        check_base(SharedBase(model, tokenizer), LORA)


def test_layers_that_are_not_there_are_refused_with_the_remedy(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UnsupportedModelError, match=r"takes no adapter on model\.lora\.target_modules=\['query'\]"):
        check_base(SharedBase(build("llama"), tokenizer), LoraSection(target_modules=["query"]))


def test_it_is_made_once_for_a_base(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    passes = 0

    def counted(lora: LoraSection = LORA, **changes: object) -> int:
        nonlocal passes
        passes = 0
        model = build("llama", torch.float32, **changes)

        def count(module: nn.Module, output: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return output

        embed(model, count)
        check_base(SharedBase(model, tokenizer), lora)
        return passes

    assert counted() > 0
    assert counted() == 0
    assert counted(rms_norm_eps=1e-3) > 0  # another configuration
    assert counted(LoraSection(target_modules=["q_proj"])) > 0  # other layers to adapt
    assert counted(initializer_range=0.1) > 0
    assert counted() == 0
    for path in (tmp_path / "cache" / "exactness").iterdir():
        path.write_text("{", encoding="utf-8")
    assert counted() > 0 and counted() == 0


def test_other_weights_are_another_base(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("llama", torch.float32)
    check_base(SharedBase(model, tokenizer), LORA)
    other = build("llama", torch.float32)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(2)
    embed(other, lambda module, output: output + output.mean(dim=(0, 1)))
    with pytest.raises(UnsupportedModelError):
        check_base(SharedBase(other, tokenizer), LORA)


def test_a_cache_that_cannot_be_written_costs_a_test_at_each_start(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("RETRO_CACHE", str(file))
    with caplog.at_level("INFO", logger="retro.models.outcomes"):
        check_sampling(build("llama"), tokenizer)
    assert "cannot be written" in caplog.text


def test_a_kept_outcome_is_obeyed(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(exactness, "_sampling_outcome", lambda model, tokenizer: "differs somewhere")
        check_sampling(build("llama", torch.float32), tokenizer)
    again = build("llama", torch.float32)
    check_sampling(again, tokenizer)
    assert not shares_prompts(again, "sampling", 20)


def test_an_actor_is_tested_where_it_samples(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = build(kind, torch.float32)
    check_sampling(model, tokenizer)
    assert shares_prompts(model, "sampling", 20)
    wrong = build(kind, torch.float32, rms_norm_eps=2e-6)
    embed(wrong, neighbours)
    with pytest.raises(UnsupportedModelError, match="what it samples"):
        check_sampling(wrong, tokenizer)
