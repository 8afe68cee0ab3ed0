"""Packed responses against the same responses one at a time: values, log-probabilities, entropies, gradients."""

from __future__ import annotations

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import build
from torch import Tensor, nn
from transformers import PreTrainedModel

from retro.models import packing
from retro.models.heads import ScalarHead
from retro.models.packing import last_token_scores, pack, response_outputs

LENGTHS = {7: [5, 1, 9], 20: [3], 1: [4, 4], 12: [1, 6, 2, 3]}
"""Of each prompt, its tokens; of each of its responses, the tokens."""


def tokens(count: int, rng: random.Random) -> list[int]:
    return [rng.randrange(3, 118) for _ in range(count)]


def contexts(seed: int = 0) -> tuple[list[list[int]], list[list[list[int]]]]:
    rng = random.Random(seed)
    prompts = [tokens(length, rng) for length in LENGTHS]
    return prompts, [[tokens(length, rng) for length in lengths] for lengths in LENGTHS.values()]


def with_lora(model: PreTrainedModel) -> nn.Module:
    """All linear layers adapted, no adapter zero."""
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))
    return adapted.double().eval()


def head_of(model: nn.Module) -> ScalarHead:
    return ScalarHead(32, seed=2).double()


def one_by_one(model: nn.Module, head: ScalarHead, temperature: float = 1.0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(log-probabilities, entropies, values) of each response, by the model's own forward pass."""
    found = []
    for prompt, responses in zip(*contexts(), strict=True):
        for response in responses:
            output = model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
            logs = (output.logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
            chosen = logs.gather(-1, torch.tensor(response)[:, None])[:, 0]
            values = head(output.hidden_states[-1][0, len(prompt) - 1 : -1])
            found.append((chosen, -(logs.exp() * logs).sum(-1), values))
    return found


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-9), ("eager", 1e-5)])  # eager: softmax in float32
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_outputs_and_gradients_are_the_unpacked_ones(
    kind: str, attention: str, tolerance: float, temperature: float
) -> None:
    model = with_lora(build(kind, attn_implementation=attention))
    head = head_of(model)
    weights = torch.randn(3, 10, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    separate = one_by_one(model, head, temperature)
    packed = pack(*contexts(), pad_id=0)
    outputs = response_outputs(model, packed, head, temperature)
    assert outputs.values is not None
    loss = torch.zeros((), dtype=torch.float64)
    for number, expected in enumerate(separate):
        length = len(expected[0])
        assert outputs.mask[number].sum() == length
        assert outputs.mask[number, :length].all()
        for weight, ours, theirs in zip(
            weights, (outputs.log_probs, outputs.entropies, outputs.values), expected, strict=True
        ):
            torch.testing.assert_close(ours[number, :length], theirs, rtol=0, atol=tolerance)
            assert not ours[number, length:].any()
            loss = loss + (weight[number, :length] * theirs).sum()
    ours = outputs.log_probs * weights[0] + outputs.entropies * weights[1] + outputs.values * weights[2]
    expected_gradients = gradients(model, loss)
    for name, gradient in gradients(model, (ours * outputs.mask).sum()).items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=10 * tolerance, atol=10 * tolerance)


def test_last_token_scores(model: PreTrainedModel) -> None:
    head = head_of(model)
    scores = last_token_scores(model, pack(*contexts(), pad_id=0), head)
    expected = [
        head(model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[-1][0, -1])
        for prompt, responses in zip(*contexts(), strict=True)
        for response in responses
    ]
    torch.testing.assert_close(scores, torch.stack(expected), rtol=0, atol=1e-10)


def test_logits_in_pieces_are_the_same(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = with_lora(model)
    packed = pack(*contexts(), pad_id=0)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        outputs = response_outputs(adapted, packed)
        return outputs.log_probs, gradients(adapted, (outputs.log_probs + 0.3 * outputs.entropies).sum())

    whole, whole_gradients = run()
    monkeypatch.setattr(packing, "_LOGITS", 118 * 4)
    pieces, pieces_gradients = run()
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    for name, gradient in pieces_gradients.items():
        torch.testing.assert_close(gradient, whole_gradients[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("window", [6, 25])
def test_a_sliding_window_is_kept_to(window: int, caplog: pytest.LogCaptureFixture) -> None:
    """Below its length prompts are not shared, and it is said; at its length sharing changes nothing."""
    model = with_lora(build("qwen2", use_sliding_window=True, sliding_window=window, max_window_layers=0))
    head = head_of(model)
    with caplog.at_level("INFO", logger="retro.models.packing"):
        outputs = response_outputs(model, pack(*contexts(), pad_id=0), head)
    assert ("prompts are not shared" in caplog.text) == (window == 6)
    separate = one_by_one(model, head)
    assert outputs.values is not None
    for number, (log_probs, _, values) in enumerate(separate):
        torch.testing.assert_close(outputs.log_probs[number, : len(log_probs)], log_probs, rtol=0, atol=1e-10)
        torch.testing.assert_close(outputs.values[number, : len(values)], values, rtol=0, atol=1e-10)
    mine = gradients(model, outputs.log_probs.sum())
    for name, gradient in gradients(model, sum(item[0].sum() for item in separate)).items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-9, atol=1e-9)


def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    model = with_lora(build(kind))
    packed = pack(*contexts(), pad_id=0)
    plain = gradients(model, response_outputs(model, packed).log_probs.sum())
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for name, gradient in gradients(model, response_outputs(model, packed).log_probs.sum()).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("prompts", "responses"), [([[]], [[[5]]]), ([[5]], [[[]]]), ([[5]], [[]])])
def test_nothing_to_pack_is_an_error(prompts: list[list[int]], responses: list[list[list[int]]]) -> None:
    with pytest.raises(ValueError, match="empty prompt or response"):
        pack(prompts, responses, pad_id=0)
