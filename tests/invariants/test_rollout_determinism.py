"""The tree of episodes depends on the seeds alone: not on concurrency, timing, or where a run was killed."""

import asyncio
import random
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import HORIZON, Excluder, Guesser, Vaults, vault_plan, vault_prompts, vault_runner

from retro.models.rounds import Rounds
from retro.rollout.attempts import Episodes
from retro.rollout.collect import collect
from retro.types import Completion, Episode, Prompt, Sampling, Split

TASKS = tuple(Vaults().tasks(Split.TRAIN, 12))


@cache
def prompts():
    return vault_prompts(Path(tempfile.mkdtemp()))


@cache
def reference(seed: int, group: int, controls: int) -> list[list[Episode]]:
    runner = vault_runner(prompts(), Guesser(), concurrency=1)
    return asyncio.run(collect(runner, TASKS, vault_plan(4, group, controls, seed), Excluder()))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 3),
    group=st.integers(1, 3),
    controls=st.integers(0, 2),
    concurrency=st.integers(1, 40),
    jitter=st.randoms(use_true_random=False),
    order=st.permutations(range(len(TASKS))),
)
def test_concurrency_timing_and_order_change_nothing(seed, group, controls, concurrency, jitter, order):
    runner = vault_runner(prompts(), Guesser(jitter), concurrency)
    tasks = [TASKS[number] for number in order]
    played = asyncio.run(collect(runner, tasks, vault_plan(4, group, controls, seed), Excluder()))
    whole = reference(seed, group, controls)
    assert played == [whole[number] for number in order]


class BatchedGuesser(Guesser):
    """Answers in rounds, as a local model does."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []
        self.rounds: Rounds[tuple[Prompt, Sampling], Completion] = Rounds(self.answer)

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        return await self.rounds.submit((prompt, sampling))

    def answer(self, asked: list[tuple[Prompt, Sampling]]) -> list[Completion]:
        self.batches.append([sampling.seed for _, sampling in asked])
        return [self.guess(prompt, sampling) for prompt, sampling in asked]


def test_an_actor_in_rounds_meets_full_and_equal_batches_and_plays_the_same():
    actors = [BatchedGuesser(), BatchedGuesser()]
    for actor in actors:
        played = asyncio.run(collect(vault_runner(prompts(), actor), TASKS, vault_plan(4, 2, 1), Excluder()))
        assert played == reference(0, 2, 1)
    assert actors[0].batches == actors[1].batches
    assert len(actors[0].batches[0]) == len(TASKS), "the first round asks for every task at once"
    assert len(actors[0].batches) <= 4 * HORIZON, "an attempt of all tasks takes one round a step"


class Killed(Exception):
    """Stands for kill -9: what was recorded is what is there."""


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 3),
    kills=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    concurrency=st.integers(1, 20),
    jitter=st.integers(0, 99),
)
def test_killed_anywhere_and_resumed_it_ends_with_the_same_tree_and_plays_nothing_twice(
    seed, kills, concurrency, jitter
):
    class Kept(Episodes):
        left: int | None = None

        def add(self, episode: Episode, /) -> None:
            if self.left == 0:
                raise Killed
            assert episode.id not in self
            super().add(episode)
            self.left = None if self.left is None else self.left - 1

    kept = Kept()

    def run(kill_after: int | None) -> list[list[Episode]]:
        kept.left = kill_after
        runner = vault_runner(prompts(), Guesser(random.Random(jitter)), concurrency)
        return asyncio.run(collect(runner, TASKS, vault_plan(4, 2, 1, seed), Excluder(), kept))

    for kill_after in kills:
        try:
            run(kill_after)
        except Killed:
            continue
    whole = reference(seed, 2, 1)
    assert run(None) == whole
    assert set(kept) == {episode.id for episodes in whole for episode in episodes}
