"""Several samples on one row of the memory: what each of them would be behind its own prompt."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import SHAPE, build
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from retro.models import generation, grouped, passes
from retro.models.backbone import UnsupportedModelError
from retro.models.cache import Block, TokenShape
from retro.models.draws import uniform
from retro.models.generation import Engine
from retro.models.grouped import Part
from retro.models.packing import pack, response_outputs
from retro.models.running import Generated
from retro.types import Sampling

END = 2


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[1, *(rng.randrange(4, 118) for _ in range(length - 1))] for length in lengths]


def seeds_of(prompts: int, count: int) -> list[list[int]]:
    return [[100 * place + index for index in range(count)] for place in range(prompts)]


def plainly(
    model: PreTrainedModel, prompt: list[int], sampling: Sampling, seed: int, room: int
) -> tuple[list[int], list[float]]:
    """One sample without any memory: a whole forward pass a token."""
    ids: list[int] = []
    log_probs: list[float] = []
    while len(ids) < min(sampling.max_tokens, room) and ids[-1:] != [END]:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].double()
        found = (logits / (sampling.temperature or 1)).log_softmax(-1)
        cumulative = found.exp().cumsum(-1)
        number = float(uniform(np.array([seed], np.uint64), np.array([len(ids)], np.uint64))[0])
        token = int((cumulative <= number * cumulative[-1]).sum()) if sampling.temperature else int(logits.argmax())
        ids.append(token)
        log_probs.append(float(found[token].detach()))
    return ids, log_probs


def check(
    model: PreTrainedModel,
    prompts: list[list[int]],
    sampling: Sampling,
    seeds: list[list[int]],
    answers: list[list[Generated]],
    tolerance: float,
    context: int = 256,
) -> None:
    """Every answer, in its place, is what its prompt and its seed alone give."""
    assert len(answers) == len(prompts)
    for prompt, row, answered in zip(prompts, seeds, answers, strict=True):
        for seed, answer in zip(row, answered, strict=True):
            ids, log_probs = plainly(model, prompt, sampling, seed, context - len(prompt))
            assert answer.ids == ids
            assert answer.log_probs == pytest.approx(log_probs, abs=tolerance)
            assert answer.finish_reason == ("stop" if ids[-1] == END else "length")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each pass, how many rows of the memory a layer reads."""
    seen: list[int] = []
    feed = generation.feed

    def recorded(model: PreTrainedModel, tokens: Tensor, positions: Tensor, parts: list[Part]) -> Tensor:
        seen.append(sum(part.rows.stop - part.rows.start for part in parts))
        return feed(model, tokens, positions, parts)

    monkeypatch.setattr(generation, "feed", recorded)
    return seen


def with_ends(model: PreTrainedModel, gain: float) -> PreTrainedModel:
    """The same model, whose end token is likelier: its samples end at different steps."""
    model.lm_head.weight[END] *= gain
    return model


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_samples_are_those_of_the_prompt_alone(
    tokenizer: PreTrainedTokenizerBase, kind: str, heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    model = with_ends(build(kind, dtype, num_key_value_heads=heads), 2.5)
    prompts = prompts_of([30, 1, 64, 5, 17, 9, 40, 3])
    sampling, seeds = Sampling(1.0, max_tokens=14), seeds_of(8, 3)
    answers = Engine(model, tokenizer).sample(prompts, 3, sampling, seeds)
    check(model, prompts, sampling, seeds, answers, tolerance)
    assert len({len(answer.ids) for answered in answers for answer in answered}) > 3


def test_rows_without_a_running_sample_are_not_read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_GAP_BYTES", {"cpu": 0})
    prompts = prompts_of([3 + i for i in range(16)], seed=5)
    sampling, seeds = Sampling(1.0, max_tokens=40, stop=("1", "go")), seeds_of(16, 2)
    answers = Engine(model, tokenizer).sample(prompts, 2, sampling, seeds)
    lengths = [max(len(answer.ids) for answer in answered) for answered in answers]
    assert read[1:] == [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert len(set(read)) > 4
    for prompt, row, answered in zip(prompts, seeds, answers, strict=True):
        for seed, answer in zip(row, answered, strict=True):
            apart = Engine(model, tokenizer).sample([prompt], 1, sampling, [[seed]])[0][0]
            assert answer.ids == apart.ids and answer.log_probs == pytest.approx(apart.log_probs, abs=1e-9)


def test_greedy_samples_are_what_generate_gives(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = prompts_of([6, 33, 12])
    answers = Engine(model, tokenizer).sample(prompts, 2, Sampling(max_tokens=9), seeds_of(3, 2))
    for prompt, answered in zip(prompts, answers, strict=True):
        output = model.generate(
            input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=9, eos_token_id=END, pad_token_id=0
        )
        assert [answer.ids for answer in answered] == [output[0, len(prompt) :].tolist()] * 2


@pytest.mark.parametrize(("count", "max_tokens"), [(1, 7), (1, 1), (5, 1), (70, 2)])
def test_groups_of_any_size(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, max_tokens: int
) -> None:
    """Of 64 places and more: a row is filled to its last place."""
    prompts = prompts_of([64 - count * (max_tokens - 1) % 64])
    sampling, seeds = Sampling(0.7, max_tokens=max_tokens), seeds_of(1, count)
    answers = Engine(model, tokenizer).sample(prompts, count, sampling, seeds)
    check(model, prompts, sampling, seeds, answers, 1e-9)


def test_more_samples_than_rows_are_taken_at_once(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = prompts_of([8, 12])
    sampling, seeds = Sampling(1.0, max_tokens=3), seeds_of(2, 6)
    answers = Engine(model, tokenizer, max_rows=4).sample(prompts, 6, sampling, seeds)
    check(model, prompts, sampling, seeds, answers, 1e-9)


def test_no_prompts_no_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert Engine(model, tokenizer).sample([], 3, Sampling(max_tokens=3), []) == []


def test_an_adapter_takes_part_in_every_sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts, sampling, seeds = prompts_of([20, 7]), Sampling(1.0, max_tokens=8), seeds_of(2, 4)
    without = Engine(model, tokenizer).sample(prompts, 4, sampling, seeds)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    answers = Engine(adapted, tokenizer).sample(prompts, 4, sampling, seeds)
    check(adapted, prompts, sampling, seeds, answers, 1e-9)
    assert answers != without


def test_stop_strings_end_samples_one_by_one(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = Engine(model, tokenizer)
    prompts, seeds = prompts_of([20, 11]), seeds_of(2, 6)
    free = engine.sample(prompts, 6, Sampling(1.0, max_tokens=25), seeds)
    stop = ("go", "7")
    stopped = engine.sample(prompts, 6, Sampling(1.0, max_tokens=25, stop=stop), seeds)
    lengths = set()
    for whole, answer in zip(chain(*free), chain(*stopped), strict=True):
        texts = [tokenizer.decode(whole.ids[:n], skip_special_tokens=True) for n in range(1, len(whole.ids) + 1)]
        length = next((n for n, text in enumerate(texts, 1) if any(item in text for item in stop)), len(whole.ids))
        assert answer.ids == whole.ids[:length]
        assert answer.log_probs == pytest.approx(whole.log_probs[:length], abs=1e-9)
        lengths.add(length)
    assert len(lengths) > 3, lengths


def test_samples_end_where_the_context_does(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("qwen2", max_position_embeddings=32)
    prompts, sampling, seeds = prompts_of([28, 31, 10]), Sampling(1.0, max_tokens=40), seeds_of(3, 4)
    answers = Engine(model, tokenizer).sample(prompts, 4, sampling, seeds)
    check(model, prompts, sampling, seeds, answers, 1e-9, context=32)
    assert max(len(answer.ids) for answer in answers[0]) == 4 and {len(answer.ids) for answer in answers[1]} == {1}


def test_a_small_memory_takes_the_prompts_in_turns(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[int, int]] = []

    class Recorded(Block):
        def __init__(self, shape: TokenShape, rows: int, capacity: int) -> None:
            super().__init__(shape, rows, capacity)
            held.append((rows, sum(states.nbytes for states in (*self.keys, *self.values))))
            assert held[-1][1] == self.nbytes

    monkeypatch.setattr(generation, "Block", Recorded)
    prompts, sampling, seeds = prompts_of([60, 20, 100, 30, 90, 61, 5]), Sampling(1.0, max_tokens=6), seeds_of(7, 4)
    budget = 250_000
    answers = Engine(model, tokenizer, cache_bytes=budget).sample(prompts, 4, sampling, seeds)
    check(model, prompts, sampling, seeds, answers, 1e-9)
    rows = [rows for rows, _ in held]
    assert len(rows) > 2 and max(rows) > 1 and sum(rows) == 7, held
    assert max(size for _, size in held) <= budget


def test_a_prompt_is_computed_and_held_once(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    fed: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: fed.append(args[0].numel()))
    engine = Engine(with_ends(model, 2.0), tokenizer)
    fed.clear()
    answers = engine.sample(prompts_of([50, 50]), 8, Sampling(1.0, max_tokens=12), seeds_of(2, 8))
    lengths = [len(answer.ids) for answered in answers for answer in answered]
    assert fed == [100, *(sum(length > step for length in lengths) for step in range(1, max(lengths)))]
    assert len(set(fed)) > 3


def test_a_sample_does_not_depend_on_its_company(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    model = with_ends(build(kind, torch.float32), 2.0)
    prompts, sampling, seeds = prompts_of([7 + 5 * i % 31 for i in range(10)]), Sampling(1.2, 0.9, 12), seeds_of(10, 4)
    together = Engine(model, tokenizer).sample(prompts, 4, sampling, seeds)
    for chosen in ([9, 3], [5], [0, 1, 2, 4, 6, 7, 8]):
        backwards = [seeds[place][::-1][:3] for place in chosen]
        apart = Engine(model, tokenizer).sample([prompts[place] for place in chosen], 3, sampling, backwards)
        for place, answered in zip(chosen, apart, strict=True):
            for one, other in zip(answered, together[place][::-1], strict=False):
                assert one.ids == other.ids
                assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_the_trainer_recomputes_the_samplers_log_probs(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """In float32, by the packed forward pass of training: the ratio of PPO's first update is 1."""
    model = with_ends(build(kind, torch.float32), 2.0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    prompts = prompts_of([120, 45, 8])
    answers = Engine(adapted, tokenizer).sample(prompts, 8, Sampling(1.0, max_tokens=24), seeds_of(3, 8))
    packed = pack(prompts, [[answer.ids for answer in answered] for answered in answers])
    with torch.no_grad():
        outputs = response_outputs(adapted, packed)
    drawn = torch.tensor([number for answered in answers for answer in answered for number in answer.log_probs])
    assert float((outputs.log_probs[outputs.mask] - drawn).abs().max()) < 1e-4


def test_the_models_attention_is_its_own_again(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = Engine(model, tokenizer)
    before = model.config._attn_implementation
    engine.sample(prompts_of([5]), 2, Sampling(max_tokens=3), seeds_of(1, 2))
    assert model.config._attn_implementation == before

    def fail(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if args[0].shape[1] == 2:
            raise RuntimeError("interrupted")

    model.model.embed_tokens.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        engine.sample(prompts_of([5]), 2, Sampling(max_tokens=3), seeds_of(1, 2))
    assert model.config._attn_implementation == before


class OwnAttention(LlamaForCausalLM):
    """Stands for the models that do not let their attention be chosen."""

    _supports_attention_backend = False


def test_models_with_an_attention_of_their_own_compute_each_answer_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    own = OwnAttention(build("llama").config).eval()
    torch.manual_seed(0)
    config = Gemma2Config(
        **SHAPE, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=5.0, attn_implementation="eager"
    )
    for model in (own, Gemma2ForCausalLM(config).eval()):
        prompts = prompts_of([5, 12])
        drawn = Engine(model, tokenizer).sample(prompts, 2, Sampling(1.0, max_tokens=6), seeds_of(2, 2))
        for prompt, answers in zip(prompts, drawn, strict=True):
            for answer in answers:
                logits = model(input_ids=torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1]
                log_probs = logits.log_softmax(-1).gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]
                assert answer.log_probs == pytest.approx(log_probs.tolist(), abs=1e-4)


def test_attention_with_a_cap_is_refused_where_prompts_are_shared() -> None:
    model = build("llama")
    attention = model.model.layers[0].self_attn
    tensors = torch.zeros(1, 4, 1, 8)
    with pytest.raises(UnsupportedModelError, match="LlamaAttention has a softcap in its attention"):
        grouped._attend(attention, tensors, tensors, tensors, tensors, softcap=5.0, parts=())
