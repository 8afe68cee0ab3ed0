"""Several answers to one prompt: one prefill and one row of keys and values, against HF ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.pipeline_timing import Check, Line, Phases, Stopwatch, alternate
from retro.config import RunConfig
from retro.models.generation import Engine
from retro.models.loading import load_base, load_tokenizer
from retro.models.text import end_tokens
from retro.types import Sampling, derive_seed

Ids = list[int]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    count: int,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> list[list[Ids]]:
    """``count`` answers to each prompt by HF ``generate``: left-padded, ``num_return_sequences`` copies of each row."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)  # (B, P)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    output = cast(Any, model).generate(  # typed as a tensor by nn.Module's __getattr__
        ids,
        attention_mask=mask,
        num_return_sequences=count,
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=sorted(end_tokens(tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = _until_end(output[:, width:], end_tokens(tokenizer))
    return [answers[place * count : (place + 1) * count] for place in range(len(prompts))]


def _until_end(written: Tensor, ends: frozenset[int]) -> list[Ids]:
    answers = []
    for row in written.tolist():
        stops = [place for place, token in enumerate(row) if token in ends]
        answers.append(row[: stops[0] + 1] if stops else row)
    return answers


def measure_sampling(config: RunConfig, prompts: Sequence[Ids], repeats: int) -> tuple[list[Line], list[Check]]:
    """``ppo.group`` answers to each prompt, at temperature 1: prompt by prompt, and all prompts in one call."""
    model, tokenizer = load_base(config.model, "cpu"), load_tokenizer(config.model)
    engine = Engine(model, tokenizer)
    count, longest = config.ppo.group, config.model.max_new_tokens

    def ours(chosen: Sequence[Ids], seed: int, temperature: float = 1.0) -> list[list[Ids]]:
        seeds = [[derive_seed(seed, place, index) for index in range(count)] for place in range(len(chosen))]
        groups = engine.sample(chosen, count, Sampling(temperature, 1.0, longest), seeds)
        return [[answer.ids for answer in group] for group in groups]

    def naive(chosen: Sequence[Ids], seed: int, temperature: float = 1.0) -> list[list[Ids]]:
        torch.manual_seed(seed)
        return generate(model, tokenizer, chosen, count, longest, temperature)

    def run(side: str, number: int) -> Phases:
        sample = ours if side == "ours" else naive
        watch = Stopwatch()
        with watch.lap("one"):
            alone = [sample([prompt], derive_seed(config.seed, number, i)) for i, prompt in enumerate(prompts)]
        with watch.lap("all"):
            together = sample(prompts, derive_seed(config.seed, number))
        watch.amount("one", sum(len(answer) for groups in alone for group in groups for answer in group))
        watch.amount("all", sum(len(answer) for group in together for answer in group))
        return watch.phases

    # The draws of the two differ; where there is nothing to draw their answers must not.
    pairs = zip(naive(prompts, 0, temperature=1e-6), ours(prompts, 0, temperature=0.0), strict=True)
    equal = [a == b for group, other in pairs for a, b in zip(group, other, strict=True)]
    for side in ("naive", "ours"):
        run(side, -1)
    line = alternate(lambda number: run("naive", number), lambda number: run("ours", number), repeats)
    lines = [
        line(f"{count} answers to a prompt, prompt by prompt", "tokens/s", ["one"]),
        line(f"{count} answers to each of {len(prompts)} prompts at once", "tokens/s", ["all"]),
    ]
    return lines, [Check("share of answers equal at temperature 0", sum(equal) / len(equal), 0.98, at_least=True)]
