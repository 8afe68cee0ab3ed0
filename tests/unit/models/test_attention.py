"""Attention among trees in one row: on slices, by FlexAttention, and who is refused it."""

from __future__ import annotations

import math

import pytest
import torch
from flex import use_flex_attention
from test_packing import contexts, gradients, with_lora
from tiny_models import build
from torch.nn.attention.flex_attention import create_block_mask
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from retro.models import attention, bases, packing
from retro.models.attention import block_mask, padded_length, slice_inputs, uses_flex_attention
from retro.models.bases import shares_prompts
from retro.models.packing import PackedBatch, pack, response_outputs


def sees(trees: list[int], segments: list[int], query: int, key: int) -> bool:
    """The definition, one pair at a time."""
    return trees[query] == trees[key] and key <= query and segments[key] in (0, segments[query])


def long_batch() -> PackedBatch:
    """Trees that begin and end within blocks, and span several."""
    return pack(
        [[5] * 300, [6] * 10, [7] * 129], [[[8] * 100, [9] * 3], [[10] * 200], [[11] * 1, [12] * 130, [13] * 40]]
    )


def test_masks_of_slices_are_the_definition() -> None:
    packed = pack(*contexts())
    inputs = slice_inputs(packed.shapes, packed.segments, torch.float64)
    assert inputs["trees"] == ((7, 22), (20, 23), (1, 9), (12, 24))
    sizes = [-(-(total - prompt) * total // 16) * 16 for prompt, total in packed.shapes]  # up to a multiple of 16
    masks = inputs["attention_mask"].flatten().split(sizes)
    trees, segments = packed.trees.tolist(), packed.segments.tolist()
    start = 0
    for (prompt, total), mask in zip(packed.shapes, masks, strict=True):
        expected = [
            [sees(trees, segments, start + query, start + key) for key in range(total)]
            for query in range(prompt, total)
        ]
        own = mask[: (total - prompt) * total].view(total - prompt, total)
        assert (own == 0).tolist() == expected
        start += total


def test_the_block_mask_is_that_of_create_block_mask() -> None:
    packed = long_batch()
    length = padded_length(len(packed.trees))
    assert length > len(packed.trees)
    extra = length - len(packed.trees)
    trees, segments = (
        torch.nn.functional.pad(value, (0, extra), value=-1) for value in (packed.trees, packed.segments)
    )
    ours = block_mask(trees, segments)
    of, part = trees.tolist(), segments.tolist()
    table = [[sees(of, part, query, key) for key in range(length)] for query in range(length)]
    visible = torch.tensor(table)
    theirs = create_block_mask(lambda b, h, q, k: visible[q, k], None, None, length, length, device="cpu")
    assert ours.shape == theirs.shape
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist(), name
    for counts, indices in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        for row, count in enumerate(getattr(ours, counts)[0, 0].tolist()):
            found, expected = (getattr(mask, indices)[0, 0, row, :count].tolist() for mask in (ours, theirs))
            assert sorted(found) == sorted(expected)
    assert ours.full_kv_num_blocks.sum() > 0
    places = torch.arange(length)
    assert torch.equal(ours.mask_mod(places, places, places[:, None], places), visible)


@pytest.mark.parametrize("tokens", [1, 128, 129, 4000, 4097, 16000, 16384, 70000])
def test_padded_lengths_are_few_and_not_far(tokens: int) -> None:
    length = padded_length(tokens)
    assert length % 128 == 0 and tokens <= length
    assert length - tokens <= max(127, tokens / 16)
    octave = {padded_length(count) for count in range(tokens, 2 * tokens)}
    assert len(octave) <= 34
    assert padded_length(2 ** math.ceil(math.log2(max(tokens, 128)))) == 2 ** math.ceil(math.log2(max(tokens, 128)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flex_attention_computes_what_slices_do(
    kind: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a CUDA device, with FlexAttention's kernel replaced by its own reference: outputs and gradients."""
    model = with_lora(build(kind, max_position_embeddings=512))
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    plain = response_outputs(model, long_batch())
    plain_gradients = gradients(model, plain.log_probs.sum())
    use_flex_attention(monkeypatch)
    flex = response_outputs(model, long_batch())
    torch.testing.assert_close(flex.log_probs, plain.log_probs, rtol=0, atol=1e-10)
    torch.testing.assert_close(flex.entropies, plain.entropies, rtol=0, atol=1e-10)
    for name, gradient in gradients(model, flex.log_probs.sum()).items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_flex_attention_compiled_computes_what_slices_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own call of the compiled kernel, which runs on a CPU without gradients."""
    model = build("llama", torch.float32, max_position_embeddings=512, hidden_size=64)
    plain = response_outputs(model, long_batch())
    monkeypatch.setattr(packing, "uses_flex_attention", lambda model: True)
    flex = response_outputs(model, long_batch())
    torch.testing.assert_close(flex.log_probs, plain.log_probs, rtol=0, atol=1e-4)


def test_another_forward_pass_is_still_plain_sdpa(model: PreTrainedModel) -> None:
    """The attention that is left in place does nothing else to calls without trees, padded and cached ones included."""
    ids = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    before = model(ids, attention_mask=mask).logits
    written = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    response_outputs(model, pack(*contexts()))
    assert torch.equal(model(ids, attention_mask=mask).logits, before)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False), written)


def mistral(window: int | None) -> PreTrainedModel:
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return MistralForCausalLM(MistralConfig(vocab_size=118, num_key_value_heads=2, sliding_window=window, **shape))


def test_a_window_is_said_once_a_model(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="retro.models.bases"):
        for _ in range(2):
            model = mistral(8)
            assert shares_prompts(model, "training", 8)
            assert not any(shares_prompts(model, "training", longest) for longest in (9, 10, 9))
    assert [record.getMessage() for record in caplog.records] == [
        "MistralForCausalLM attends to a sliding window of 8 tokens, and there are longer sequences: training does not "
        "share prompts, which is exact and slower"
    ] * 2
    assert shares_prompts(mistral(None), "training", 10**6)


def test_a_model_that_cannot_share_says_why(caplog: pytest.LogCaptureFixture) -> None:
    mixed, alone, unlisted = build("qwen2"), build("llama"), build("llama")
    mixed.config.layer_types = ["full_attention", "linear_attention"]
    alone._supports_attention_backend = False
    unlisted.config.model_type = "of-my-own"
    reasons = {
        "'eager'": build("llama", attn_implementation="eager"),
        "other than attention over all": mixed,
        "AttentionInterface": alone,
        "'of-my-own', which is not listed": unlisted,
    }
    for reason, model in reasons.items():
        caplog.clear()
        with caplog.at_level("INFO", logger="retro.models.bases"):
            assert not shares_prompts(model, "training", 5)
            assert not shares_prompts(model, "training", 5)
        [record] = caplog.records
        assert reason in record.getMessage()


class OnCuda:
    """A model as far as it is asked where it is."""

    device = torch.device("cuda")
    _supports_flex_attn = True

    def __init__(self, training: bool = False, **changes: object) -> None:
        self.config = build("llama", hidden_size=64, **changes).config
        self.training = training


@pytest.mark.parametrize(
    ("model", "capability", "why"),
    [
        (OnCuda(), (9, 0), None),
        (OnCuda(attention_dropout=0.1), (9, 0), None),
        (OnCuda(training=True, attention_dropout=0.1), (9, 0), "no dropout"),
        (OnCuda(num_attention_heads=8), (9, 0), "16 numbers"),
        (OnCuda(), (6, 1), "7.0"),
    ],
)
def test_flex_attention_is_chosen_by_the_device(
    model: PreTrainedModel,
    capability: tuple[int, int],
    why: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "find_spec", lambda name: object())
    monkeypatch.setattr(bases, "_logged", {})
    with caplog.at_level("INFO", logger="retro.models.bases"):
        assert [uses_flex_attention(model), uses_flex_attention(model)] == [why is None] * 2
    assert len(caplog.records) == (why is not None)
    assert why is None or why in caplog.text


def test_no_flex_attention_on_a_cpu_or_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses_flex_attention(build("llama"))
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    monkeypatch.setattr(bases, "_logged", {})
    assert not uses_flex_attention(OnCuda())  # type: ignore[arg-type]
