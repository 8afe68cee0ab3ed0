"""Our generation against Hugging Face's, and against itself in other company."""

from __future__ import annotations

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import build
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retro.models.generation import Engine
from retro.models.running import Generated
from retro.types import Sampling


def prompts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[1, *(rng.randrange(4, 118) for _ in range(length - 1))] for length in lengths]


def alone(model: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy decoding by ``generate``."""
    output = model.generate(
        input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=max_tokens, eos_token_id=2, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


def recomputed(model: PreTrainedModel, prompt: list[int], answer: Generated, temperature: float) -> Tensor:
    """Log-probabilities of an answer's tokens from one plain forward pass."""
    logits = model(input_ids=torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]


def close(left: list[Generated], right: list[Generated], tolerance: float) -> bool:
    """The same tokens and ends; log-probabilities up to rounding."""
    return all(
        a.ids == b.ids
        and a.finish_reason == b.finish_reason
        and a.log_probs == pytest.approx(b.log_probs, abs=tolerance)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_is_what_generate_gives(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, attention: str
) -> None:
    model.set_attn_implementation(attention)
    engine = Engine(model, tokenizer)
    prompts = prompts_of([1, 3, 40, 17, 9])
    answers = engine.complete([("", prompt, Sampling(max_tokens=12)) for prompt in prompts])
    assert [answer.ids for answer in answers] == [alone(model, prompt, 12) for prompt in prompts]


def test_sampling_twice_from_one_prefill_is_sampling_twice(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = prompts_of([30, 4, 11])
    sampling = Sampling(temperature=1.0, max_tokens=10)
    seeds = [[100 * place + index for index in range(3)] for place in range(3)]
    answers = Engine(model, tokenizer).sample(prompts, 3, sampling, seeds)
    for prompt, row, answered in zip(prompts, seeds, answers, strict=True):
        for seed, answer in zip(row, answered, strict=True):
            single = Engine(model, tokenizer).sample([prompt], 1, sampling, [[seed]])
            assert close(single[0], [answer], 1e-9)
    assert len({tuple(answer.ids) for answered in answers for answer in answered}) == 9


def test_conversations_equal_their_computation_from_scratch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Sessions that grow by different lengths, pause, come back, are cut back, and lose their row to others."""
    rng = random.Random(3)
    engine = Engine(model, tokenizer, max_rows=6)
    histories = prompts_of([rng.randint(2, 40) for _ in range(9)], seed=3)
    for turn in range(8):
        batch = rng.sample(range(9), rng.randint(1, 9))
        sampling = [Sampling(temperature=0.7, max_tokens=rng.randint(1, 8), seed=10 * turn + i) for i in batch]
        requests = [(f"session {i}", histories[i], s) for i, s in zip(batch, sampling, strict=True)]
        answers = engine.complete(requests)
        fresh = [Engine(model, tokenizer).complete([("", ids, s)])[0] for _, ids, s in requests]
        assert close(answers, fresh, 1e-9)
        for i, answer in zip(batch, answers, strict=True):
            kept = (
                histories[i][: rng.randint(1, len(histories[i]))] if rng.random() < 0.2 else histories[i] + answer.ids
            )
            histories[i] = kept + prompts_of([rng.randint(1, 9)], seed=100 * turn + i)[0]


def test_several_answers_behind_prompts_that_grow_equal_their_computation_from_scratch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = random.Random(5)
    engine = Engine(model, tokenizer, max_rows=2)
    histories = prompts_of([rng.randint(2, 40) for _ in range(3)], seed=5)
    for turn in range(3):
        samplings = [
            [Sampling(1.0, max_tokens=rng.randint(1, 8), seed=100 * turn + 10 * i + n) for n in range(1 + i % 3)]
            for i in range(3)
        ]
        answers = engine.extend([(f"session {i}", histories[i], samplings[i]) for i in range(3)])
        for i, (row, answered) in enumerate(zip(samplings, answers, strict=True)):
            for sampling, answer in zip(row, answered, strict=True):
                alone = Engine(model, tokenizer).sample([histories[i]], 1, sampling, [[sampling.seed]])
                assert close(alone[0], [answer], 1e-9)
            kept = histories[i][: rng.randint(1, len(histories[i]))] if rng.random() < 0.3 else histories[i]
            histories[i] = kept + rng.choice(answered).ids


def test_a_session_is_computed_only_where_it_is_new(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = Engine(model, tokenizer)
    fed: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: fed.append(args[0].numel()))
    prompt = prompts_of([50])[0]
    answer = engine.complete([("a", prompt, Sampling(max_tokens=4))])[0]
    first = sum(fed)
    fed.clear()
    engine.complete([("a", prompt + answer.ids + [5, 6, 7], Sampling(max_tokens=4))])
    assert first == 50 + len(answer.ids) - 1
    assert sum(fed) <= 4 + 3  # the drawn token that was not fed, three new ones, three fed in turn


def test_two_requests_of_one_session_in_one_batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = Engine(model, tokenizer)
    left, right = prompts_of([20, 12])
    for _ in range(2):
        answers = engine.complete([("a", left, Sampling(max_tokens=5)), ("a", right, Sampling(max_tokens=5))])
        assert [answer.ids for answer in answers] == [alone(model, left, 5), alone(model, right, 5)]


def test_draws_do_not_depend_on_the_batch(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    model = build(kind, torch.float32)
    prompts = prompts_of([5 + 3 * i % 37 for i in range(12)])
    requests = [
        ("", prompt, Sampling(temperature=1.3, top_p=0.9, max_tokens=8, seed=i)) for i, prompt in enumerate(prompts)
    ]
    together = Engine(model, tokenizer).complete(requests)
    backwards = Engine(model, tokenizer, max_rows=5).complete(requests[::-1])[::-1]
    separate = [Engine(model, tokenizer).complete([request])[0] for request in requests]
    assert close(together, backwards, 1e-4)
    assert close(together, separate, 1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
def test_log_probs_are_those_of_a_plain_forward_pass(
    tokenizer: PreTrainedTokenizerBase, kind: str, temperature: float
) -> None:
    model = build(kind, torch.float32)
    prompts = prompts_of([25, 8])
    answers = Engine(model, tokenizer).sample(
        prompts, 4, Sampling(temperature, max_tokens=12), [[1, 2, 3, 4], [5, 6, 7, 8]]
    )
    for prompt, answered in zip(prompts, answers, strict=True):
        for answer in answered:
            expected = recomputed(model, prompt, answer, temperature or 1.0)
            assert torch.tensor(answer.log_probs) == pytest.approx(expected.numpy(), abs=1e-4)


def test_an_adapter_takes_part(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompts_of([20])[0]
    without = Engine(model, tokenizer).complete([("", prompt, Sampling(max_tokens=8))])[0]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    answer = Engine(adapted, tokenizer).complete([("", prompt, Sampling(max_tokens=8))])[0]
    assert answer.ids == alone(adapted, prompt, 8) != without.ids


def test_stop_strings_end_an_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = Engine(model, tokenizer)
    prompt = prompts_of([20])[0]
    free = engine.complete([("", prompt, Sampling(temperature=1.0, max_tokens=30, seed=4))])[0]
    text = tokenizer.decode(free.ids, skip_special_tokens=True)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    stopped = engine.complete([("", prompt, Sampling(temperature=1.0, max_tokens=30, stop=("§", stop), seed=4))])[0]
    assert stopped.ids == free.ids[: len(stopped.ids)] and stopped.finish_reason == "stop"
    assert stop in tokenizer.decode(stopped.ids, skip_special_tokens=True)
    assert stop not in tokenizer.decode(stopped.ids[:-1], skip_special_tokens=True)


def test_an_end_token_ends_an_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = prompts_of([9] * 64)
    answers = Engine(model, tokenizer).sample(prompts, 1, Sampling(1.0, max_tokens=60), [[i] for i in range(64)])
    ended = [answered[0] for answered in answers if answered[0].finish_reason == "stop"]
    assert ended and all(answer.ids[-1] == 2 and 2 not in answer.ids[:-1] for answer in ended)


def test_rows_that_have_ended_leave(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    batches: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    prompts = prompts_of([9 + i % 5 for i in range(24)])
    limits = [1 + (7 * i) % 24 for i in range(24)]
    requests = [(f"s{i}", prompts[i], Sampling(max_tokens=limits[i])) for i in range(24)]
    engine = Engine(model, tokenizer)
    answers = engine.complete(requests)
    assert batches[-1] <= 6
    assert [answer.ids for answer in answers] == [alone(model, *pair) for pair in zip(prompts, limits, strict=True)]
    again = [(f"s{i}", prompts[i] + answers[i].ids + [5], Sampling(max_tokens=3)) for i in range(24)]
    assert [answer.ids for answer in engine.complete(again)] == [alone(model, ids, 3) for _, ids, _ in again]


@pytest.mark.parametrize(("length", "word"), [(0, "empty"), (256, "256 tokens")])
def test_prompts_that_cannot_be_continued_are_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int, word: str
) -> None:
    engine = Engine(model, tokenizer)
    prompt = (prompts_of([length]) if length else [[]])[0]
    with pytest.raises(ValueError, match=word):
        engine.complete([("", prompt, Sampling(max_tokens=4))])
    with pytest.raises(ValueError, match=word):
        engine.sample([prompt], 1, Sampling(max_tokens=4), [[0]])


def test_an_answer_ends_where_the_context_does(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    answer = Engine(model, tokenizer).complete([("", prompts_of([250])[0], Sampling(max_tokens=40))])[0]
    assert answer.finish_reason == "stop" or (len(answer.ids) == 6 and answer.finish_reason == "length")


def test_a_small_memory_gives_the_same_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    requests = [(f"s{i}", prompt, Sampling(max_tokens=6)) for i, prompt in enumerate(prompts_of([30, 70, 5, 12, 90]))]
    small = Engine(model, tokenizer, cache_bytes=200_000)
    large = Engine(model, tokenizer).complete(requests)
    assert close(small.complete(requests[:1]), large[:1], 1e-9)
    assert close(small.complete(requests), large, 1e-9)


def test_beyond_a_sliding_window_conversations_are_those_of_generate(tokenizer: PreTrainedTokenizerBase) -> None:
    """Turns within the window and beyond it, beside one another and one after the other."""
    model = build("qwen2", use_sliding_window=True, sliding_window=32, max_window_layers=0)
    engine = Engine(model, tokenizer)
    histories = prompts_of([10, 30, 91])
    for _ in range(3):
        requests = [(f"s{i}", history, Sampling(max_tokens=9)) for i, history in enumerate(histories)]
        answers = engine.complete(requests)
        assert [answer.ids for answer in answers] == [alone(model, history, 9) for history in histories]
        histories = [[*history, *answer.ids, 5, 6] for history, answer in zip(histories, answers, strict=True)]


def test_beyond_a_sliding_window_samples_are_those_of_the_forward_pass(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("qwen2", torch.float32, use_sliding_window=True, sliding_window=32, max_window_layers=0)
    prompts, seeds = prompts_of([20, 28, 60]), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    together = Engine(model, tokenizer).sample(prompts, 3, Sampling(0.9, max_tokens=11), seeds)
    for prompt, row, answers in zip(prompts, seeds, together, strict=True):
        for seed, answer in zip(row, answers, strict=True):
            assert answer.log_probs == pytest.approx(recomputed(model, prompt, answer, 0.9).tolist(), abs=1e-4)
            [[single]] = Engine(model, tokenizer).sample([prompt], 1, Sampling(0.9, max_tokens=11), [[seed]])
            assert close([single], [answer], 1e-4)


def test_on_the_plain_way_answers_end_as_they_do_on_the_shared_one(tokenizer: PreTrainedTokenizerBase) -> None:
    """End tokens, stop strings, limits of their own, temperatures and top-p: the same draws by another computation."""
    shared = build("llama", torch.float32)
    plain = build("llama", torch.float32)
    plain.config.model_type = "of-my-own"
    prompts = prompts_of([9, 14, 30, 22])
    free = Engine(shared, tokenizer).complete([("", prompts[1], Sampling(1.0, max_tokens=30, seed=2))])[0]
    text = tokenizer.decode(free.ids, skip_special_tokens=True)
    samplings = [
        Sampling(max_tokens=7),
        Sampling(1.0, max_tokens=30, seed=2, stop=("§", text[len(text) // 2 : len(text) // 2 + 3])),
        Sampling(1.3, 0.8, max_tokens=30, seed=3),
        Sampling(1.0, max_tokens=60, seed=4),
    ]
    requests = [("", prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
    expected, found = Engine(shared, tokenizer).complete(requests), Engine(plain, tokenizer).complete(requests)
    assert close(found, expected, 1e-4)
    assert {answer.finish_reason for answer in found} == {"stop", "length"}
    many, seeds = Sampling(1.0, max_tokens=40), [[7 * i + j for j in range(8)] for i in range(4)]
    for own, other in zip(
        Engine(shared, tokenizer).sample(prompts, 8, many, seeds),
        Engine(plain, tokenizer).sample(prompts, 8, many, seeds),
        strict=True,
    ):
        assert close(other, own, 1e-4)


def test_a_model_ends_its_answers_as_its_generation_config_says(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = prompts_of([20])[0]
    free = Engine(model, tokenizer).complete([("", prompt, Sampling(max_tokens=12))])[0]
    third = free.ids[3]
    model.generation_config.eos_token_id = [2, third]
    ended = Engine(model, tokenizer).complete([("", prompt, Sampling(max_tokens=12))])[0]
    assert ended.ids == free.ids[: free.ids.index(third) + 1]
    assert ended.finish_reason == "stop"
