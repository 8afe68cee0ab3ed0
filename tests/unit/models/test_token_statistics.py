"""Log-probabilities and entropies in pieces against autograd on the whole; what is kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import build
from torch import Tensor, nn

from retro.models import token_statistics as module
from retro.models.backbone import logits_of
from retro.models.token_statistics import token_statistics

N, H, V = 7, 32, 118
TARGETS = torch.tensor([0, 117, 5, 5, 60, 2, 9])


def hidden() -> Tensor:
    return torch.randn(N, H, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()


def whole(model: nn.Module, states: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    distribution = torch.distributions.Categorical(logits=logits_of(model, states) / temperature)
    return distribution.log_prob(TARGETS), distribution.entropy()


def with_bias() -> nn.Module:
    model = build("llama")
    model.lm_head = nn.Linear(H, V, dtype=torch.float64).requires_grad_(False)
    return model


def learning_output_layer() -> nn.Module:
    torch.manual_seed(2)
    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    return get_peft_model(build("llama"), config).double()


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("make", [with_bias, learning_output_layer])
def test_pieces_are_the_whole(make: object, temperature: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOGITS", V * size)
    assert callable(make)
    model = make()
    states = hidden()
    parameters = [parameter for name, parameter in model.named_parameters() if "lm_head" in name]
    learning = [states, *(parameter for parameter in parameters if parameter.requires_grad)]
    weights = torch.linspace(-1, 2, 2 * N, dtype=torch.float64).view(2, N)
    for entropy_gradient in (False, True):
        found = token_statistics(model, states, TARGETS, temperature, entropy_gradient)
        expected = whole(model, states, temperature)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert found[1].requires_grad == entropy_gradient
        loss = (weights[0] * found[0]).sum() + (weights[1] * found[1]).sum()
        wanted = (weights[0] * expected[0]).sum() + (weights[1] * expected[1]).sum() * entropy_gradient
        for ours, theirs in zip(
            torch.autograd.grad(loss, learning), torch.autograd.grad(wanted, learning), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for ours, theirs in zip(token_statistics(model, states, TARGETS, temperature), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOGITS", V * 3)
    model = with_bias()
    assert torch.autograd.gradcheck(lambda states: token_statistics(model, states, TARGETS, 0.8, True), hidden())


def test_entropies_alone_have_a_gradient() -> None:
    model = with_bias()
    states = hidden()
    (ours,) = torch.autograd.grad(token_statistics(model, states, TARGETS, 1.0, True)[1].sum(), states)
    (theirs,) = torch.autograd.grad(whole(model, states, 1.0)[1].sum(), states)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_nothing_of_the_vocabulary_is_kept(entropy_gradient: bool) -> None:
    model = with_bias()
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda x: x
    ):
        token_statistics(model, hidden(), TARGETS, 1.0, entropy_gradient)
    assert [shape for shape in kept if len(shape) == 2 and shape[0] == N] == [(N, H)] * (1 + entropy_gradient)
    assert not [shape for shape in kept if shape[-1] == V and shape[0] != H]
