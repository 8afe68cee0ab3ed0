"""Collection: many episodes at once on one key-value cache, against one after the other by HF ``generate``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.pipeline_timing import Check, Line, Phases, Stopwatch, alternate
from retro.actors.local import LocalActor
from retro.config import RunConfig, build
from retro.envs import make_taskset
from retro.models.loading import load_base, load_tokenizer
from retro.models.text import decode, decode_response, encode_prompt, end_tokens
from retro.prompts import load_prompts
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.types import Actor, Completion, Episode, Prompt, Sampling, Task, Usage
from retro.wire.answers import cut

WARM_UP_EPISODES = 8


class WholePromptActor:
    """The naive actor: every step is a call of HF ``generate`` on the whole prompt, at temperature 0.

    ``generate`` gets the tokens that end an action as end tokens: faster than its own search for stop strings.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._model, self._tokenizer = model, tokenizer
        closing = [token for token in range(len(tokenizer)) if any(text in decode(tokenizer, [token]) for text in stop)]
        self._ends = [*sorted(end_tokens(tokenizer)), *closing]

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        ids = torch.tensor([encode_prompt(self._tokenizer, prompt)])  # (1, P)
        output = cast(Any, self._model).generate(  # typed as a tensor by nn.Module's __getattr__
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            eos_token_id=self._ends,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        written = output[0, ids.shape[1] :].tolist()
        text = decode_response(self._tokenizer, written)
        finish: Literal["stop", "length"] = "stop" if written[-1] in self._ends else "length"
        return Completion(cut(text, sampling.stop).strip(), finish, Usage(ids.shape[1], len(written)))


def play(config: RunConfig, actor: Actor, tasks: Sequence[Task], concurrency: int) -> list[Episode]:
    """One episode a task, at temperature 0, by the project's own loop: who answers is all that differs."""
    player = Player(
        make_taskset(config.environment.name, config.environment.options),
        actor,
        load_prompts(config.environment.name),
        build(config.memory),
        Sampling(0.0, 1.0, config.actor.max_tokens),
    )
    with closing(LocalRunner(player, concurrency)) as runner:
        return [chain[0] for chain in asyncio.run(collect(runner, tasks, Plan((config.seed, "benchmark"), 1)))]


def measure_collection(
    config: RunConfig, tasks: Sequence[Task], repeats: int
) -> tuple[list[Line], list[Check], list[Episode]]:
    """Lines, checks, and the episodes that were played."""
    model, tokenizer = load_base(config.actor, "cpu"), load_tokenizer(config.actor)
    stop = load_prompts(config.environment.name).actor_stop
    played: dict[str, list[Episode]] = {}

    def one_at_a_time(number: int, some: Sequence[Task] = tasks) -> Phases:
        watch = Stopwatch()
        with watch.lap("play", len(some)):
            played["naive"] = play(config, WholePromptActor(model, tokenizer, stop), some, concurrency=1)
        return watch.phases

    def concurrent(number: int) -> Phases:
        watch = Stopwatch()
        with watch.lap("play", len(tasks)):  # a new actor: nothing of an earlier repeat is in its cache
            actor = LocalActor(model, tokenizer, rows=config.actor.concurrency)
            played["ours"] = play(config, actor, tasks, config.actor.concurrency)
        return watch.phases

    one_at_a_time(-1, tasks[:WARM_UP_EPISODES])  # whose cost does not depend on how many there are
    concurrent(-1)
    line = alternate(one_at_a_time, concurrent, repeats)
    equal = [_actions(a) == _actions(b) for a, b in zip(played["naive"], played["ours"], strict=True)]
    checks = [Check("share of episodes with equal actions", sum(equal) / len(equal), 0.98, at_least=True)]
    return [line("collection, temperature 0", "episodes/s", ["play"])], checks, played["ours"]


def _actions(episode: Episode) -> list[str]:
    return [step.action for step in episode.trajectory.steps]
