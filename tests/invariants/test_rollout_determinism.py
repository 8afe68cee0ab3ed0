"""The tree of episodes depends on the seeds alone: not on concurrency, timing, or where a run was killed."""

import asyncio
import random
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import HORIZON, Excluder, Guesser, Vaults, vault_player, vault_prompts

from retro.models.rounds import Rounds
from retro.rollout.collect import collect
from retro.types import Completion, Episode, Prompt, Sampling, Split

TASKS = tuple(Vaults().tasks(Split.TRAIN, 12))


@cache
def prompts():
    return vault_prompts(Path(tempfile.mkdtemp()))


@cache
def reference(seed: int, group: int, controls: int) -> list[list[Episode]]:
    player = vault_player(prompts(), Guesser(), seed=seed)
    return asyncio.run(collect(player, TASKS, 4, Excluder(), group, controls, concurrency=1))


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
    player = vault_player(prompts(), Guesser(jitter), seed=seed)
    tasks = [TASKS[number] for number in order]
    played = asyncio.run(collect(player, tasks, 4, Excluder(), group, controls, concurrency=concurrency))
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
        played = asyncio.run(collect(vault_player(prompts(), actor), TASKS, 4, Excluder(), 2, 1))
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
    kept: dict[str, Episode] = {}

    def run(kill_after: int | None) -> list[list[Episode]]:
        left = kill_after

        def record(episode: Episode) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            assert episode.id not in kept
            kept[episode.id] = episode
            left = None if left is None else left - 1

        player = vault_player(prompts(), Guesser(random.Random(jitter)), seed=seed)
        return asyncio.run(
            collect(player, TASKS, 4, Excluder(), 2, 1, recall=kept.get, record=record, concurrency=concurrency)
        )

    for kill_after in kills:
        try:
            run(kill_after)
        except Killed:
            continue
    whole = reference(seed, 2, 1)
    assert run(None) == whole
    assert set(kept) == {episode.id for episodes in whole for episode in episodes}
