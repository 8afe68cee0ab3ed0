"""Packed responses against the same responses one at a time: values, log-probabilities, entropies, gradients."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_models import build
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from retro.models import token_statistics
from retro.models.heads import ScalarHead
from retro.models.packing import last_token_scores, pack, plan, response_outputs, tree_tokens

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
    packed = pack(*contexts())
    outputs = response_outputs(model, packed, head, temperature, entropy_gradient=True)
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
    scores = last_token_scores(model, pack(*contexts()), head)
    expected = [
        head(model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[-1][0, -1])
        for prompt, responses in zip(*contexts(), strict=True)
        for response in responses
    ]
    torch.testing.assert_close(scores, torch.stack(expected), rtol=0, atol=1e-10)


def test_gradients_of_reward_pairs(model: PreTrainedModel) -> None:
    """Bradley-Terry on all pairs of a group: the adapter's and the head's gradients, shared and alone."""
    adapted = with_lora(model)
    adapted.add_module("reward_head", head_of(model))
    prompts, responses = contexts()

    def pair_loss(scores: Tensor) -> Tensor:
        groups = scores.split([len(group) for group in responses])
        return sum(-logsigmoid(own[i] - own[j]) for own in groups for i in range(len(own)) for j in range(i))

    alone = [
        adapted.reward_head(
            adapted(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[-1][0, -1]
        )
        for prompt, group in zip(prompts, responses, strict=True)
        for response in group
    ]
    expected = gradients(adapted, pair_loss(torch.stack(alone)))
    found = gradients(adapted, pair_loss(last_token_scores(adapted, pack(prompts, responses), adapted.reward_head)))
    assert any("reward_head" in name for name in found) and any("down_proj" in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


def test_trees_stand_one_behind_the_other() -> None:
    packed = pack([[5, 6], [7]], [[[8], [9, 10]], [[11, 12]]])
    assert packed.input_ids.tolist() == [[5, 6, 8, 9, 10, 7, 11, 12]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 2]]
    assert packed.trees.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert packed.segments.tolist() == [0, 0, 1, 2, 2, 0, 1, 1]
    assert packed.shapes == ((2, 5), (1, 3))
    assert packed.sources.tolist() == [1, 1, 3, 5, 6]
    assert packed.targets.tolist() == [8, 9, 10, 11, 12]
    assert packed.owners.tolist() == [0, 1, 1, 2, 2]
    assert packed.steps.tolist() == [0, 0, 1, 0, 1]
    assert packed.last_places.tolist() == [2, 4, 7]
    assert packed.longest == 4


def test_inputs_are_made_once() -> None:
    packed = pack([[5, 6], [7]], [[[8], [9, 10]], [[11, 12]]])
    inputs = packed.inputs(False, torch.float32)
    assert packed.inputs(False, torch.float32) is inputs
    assert packed.inputs(False, torch.float64)["attention_mask"].dtype == torch.float64
    assert packed.to(torch.device("cpu")) is packed
    assert inputs["attention_mask"].numel() == 16 + 16  # 3 · 5 and 2 · 3 (responses by tree), each rounded up


def test_passes_are_filled_up() -> None:
    assert plan([3, 9, 4, 5, 1], 10) == [[1, 4], [3, 2], [0]]
    assert plan([3, 90, 4], 10) == [[1], [2, 0]]  # one tree always goes
    assert plan([3, 9, 4, 5, 1], most=2) == [[1, 3], [2, 0], [4]]
    assert plan([2, 2, 2, 2], 8, most=3) == [[0, 1, 2], [3]]
    assert plan([], 10) == []


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60), st.integers(1, 5))
def test_every_tree_goes_once_and_within_the_budget(tokens: list[int], budget: int, most: int) -> None:
    passes = plan(tokens, budget, most)
    assert sorted(place for members in passes for place in members) == list(range(len(tokens)))
    for members in passes:
        assert len(members) == 1 or sum(tokens[place] for place in members) <= budget
        assert len(members) <= most


def test_logits_in_pieces_are_the_same(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = with_lora(model)
    packed = pack(*contexts())

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        outputs = response_outputs(adapted, packed, entropy_gradient=True)
        return outputs.log_probs, gradients(adapted, (outputs.log_probs + 0.3 * outputs.entropies).sum())

    whole, whole_gradients = run()
    monkeypatch.setattr(token_statistics, "_LOGITS", 118 * 4)
    pieces, pieces_gradients = run()
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    for name, gradient in pieces_gradients.items():
        torch.testing.assert_close(gradient, whole_gradients[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("window", [6, 25])
def test_a_sliding_window_is_kept_to(window: int, caplog: pytest.LogCaptureFixture) -> None:
    """Below its length prompts are not shared, and it is said; at its length sharing changes nothing."""
    model = with_lora(build("qwen2", use_sliding_window=True, sliding_window=window, max_window_layers=0))
    head = head_of(model)
    with caplog.at_level("INFO", logger="retro.models.bases"):
        outputs = response_outputs(model, pack(*contexts()), head)
    assert ("does not share prompts" in caplog.text) == (window == 6)
    separate = one_by_one(model, head)
    assert outputs.values is not None
    for number, (log_probs, _, values) in enumerate(separate):
        torch.testing.assert_close(outputs.log_probs[number, : len(log_probs)], log_probs, rtol=0, atol=1e-10)
        torch.testing.assert_close(outputs.values[number, : len(values)], values, rtol=0, atol=1e-10)
    mine = gradients(model, outputs.log_probs.sum())
    for name, gradient in gradients(model, sum(item[0].sum() for item in separate)).items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-9, atol=1e-9)


def test_a_tree_counts_what_it_takes_of_a_pass() -> None:
    prompts, responses = [[5] * 10, [6] * 4], [[[7] * 3, [8] * 2], [[9]]]
    assert tree_tokens(build("llama"), prompts, responses) == [15, 5]
    sliding = build("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=0)
    assert tree_tokens(sliding, prompts, responses) == [2 * 13, 13]
    assert tree_tokens(sliding, [], []) == []


def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    model = with_lora(build(kind))
    packed = pack(*contexts())
    plain = gradients(model, response_outputs(model, packed).log_probs.sum())
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for name, gradient in gradients(model, response_outputs(model, packed).log_probs.sum()).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("prompts", "responses"), [([[]], [[[5]]]), ([[5]], [[[]]]), ([[5]], [[]]), ([], []), ([[5], [6]], [[[7]], []])]
)
def test_nothing_to_pack_is_an_error(prompts: list[list[int]], responses: list[list[list[int]]]) -> None:
    with pytest.raises(ValueError, match="empty prompt or response"):
        pack(prompts, responses)
