"""The one loop: play, fail, reflect, retry."""

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest
from small_world import Excluder, Guesser, Vaults, vault_plan, vault_prompts, vault_runner

from retro.config import ActorSection, CollectSection
from retro.models.rounds import all_of
from retro.prompts import PromptTooLongError
from retro.rollout.attempts import Attempt, Episodes, Plan
from retro.rollout.trials import run_trials, warn
from retro.types import Episode, Reflection, ReflectionRequest, Split, StopReason

TASKS = Vaults().tasks(Split.TRAIN, 60)


@pytest.fixture
def prompts(tmp_path):
    return vault_prompts(tmp_path)


def run(runner, task, attempts, reflector=None, group=1, controls=0, journal=None, skip=warn) -> list[Episode]:
    plan = vault_plan(attempts, group, controls)
    return asyncio.run(run_trials(runner, task, plan, reflector, journal, skip))


class Recorded(Episodes):
    """A journal that knows some episodes, and tells which were added."""

    def __init__(self, episodes: Iterable[Episode] = ()) -> None:
        super().__init__({episode.id: episode for episode in episodes})
        self.added: list[Episode] = []

    def add(self, episode: Episode, /) -> None:
        assert episode.id not in self, "played twice"
        super().add(episode)
        self.added.append(episode)


def test_plain_retry_is_a_chain_of_controls_until_success_or_the_last_attempt(prompts):
    lengths = Counter()
    for task in TASKS:
        episodes = run(vault_runner(prompts, Guesser()), task, 4)
        assert [episode.trial for episode in episodes] == list(range(len(episodes)))
        assert [episode.parent for episode in episodes] == [None, *(episode.id for episode in episodes[:-1])]
        assert all(episode.reflection is None for episode in episodes)
        assert not any(episode.success for episode in episodes[:-1])
        assert episodes[-1].success or len(episodes) == 4
        lengths[len(episodes)] += 1
    assert set(lengths) == {1, 2, 3, 4}


def test_one_attempt_is_one_play(prompts):
    reflector = Excluder()
    assert all(len(run(vault_runner(prompts, Guesser()), task, 1, reflector)) == 1 for task in TASKS[:10])
    assert reflector.requests == []


def test_a_chain_of_reflections_carries_its_memory(prompts):
    for task in TASKS:
        reflector = Excluder()
        episodes = run(vault_runner(prompts, Guesser()), task, 4, reflector)
        texts = [episode.reflection.text for episode in episodes[1:] if episode.reflection]
        assert len(texts) == len(episodes) - 1 == len(reflector.requests)
        for number, request in enumerate(reflector.requests):
            assert request.episode == episodes[number]
            assert request.episode.recalled.entries == tuple(texts[:number][-2:])
            first = max(0, number - 2)
            assert request.episode.recalled.ids == tuple(f"reflection-{place}" for place in range(first, number))
            assert request.count == 1


def test_a_group_has_a_retry_for_each_reflection_and_its_controls(prompts):
    sizes = set()
    for task in TASKS:
        episodes = run(vault_runner(prompts, Guesser()), task, 3, Excluder(), group=3, controls=2)
        children = {parent: [e for e in episodes if e.parent == parent] for parent in {e.parent for e in episodes[1:]}}
        for parent, group in children.items():
            assert [e.reflection is None for e in group] == [False, False, False, True, True]
            assert [e.reflection.index for e in group[:3]] == [0, 1, 2]
            failed = next(e for e in episodes if e.id == parent)
            assert failed.failed and (failed.trial == 0 or failed.reflection is not None)
        assert len({e.id for e in episodes}) == len(episodes)
        assert len(children) <= 2
        sizes.add(len(children))
        if children and len(children) < 2:
            assert all(e.success for e in episodes[1:4]), "the chain goes on while a retry failed"
    assert sizes == {0, 1, 2}


@pytest.mark.parametrize(("temperature", "controls"), [(0.0, 0), (0.7, 2)])
def test_a_deterministic_actor_plays_no_controls(temperature, controls):
    section = CollectSection(attempts=2, group=3, controls=2)
    plan = Plan.of(("key",), section, ActorSection(temperature=temperature))
    assert plan == Plan(("key",), 2, 3, controls)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": 2, "group": 0, "reflector": Excluder()}, "group"),
        ({"attempts": 2, "group": 2}, "plain retry"),
        ({"attempts": 2, "controls": 1}, "plain retry"),
    ],
)
def test_impossible_settings_are_refused(prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        run(vault_runner(prompts, Guesser()), TASKS[0], **settings)


def test_what_is_recalled_is_not_played_again_and_keeps_its_reflections(prompts):
    for task in TASKS[:20]:
        whole = run(vault_runner(prompts, Guesser()), task, 4, Excluder(), group=3, controls=1)
        for kept in range(len(whole) + 1):
            actor, journal = Guesser(), Recorded(whole[:kept])
            assert run(vault_runner(prompts, actor), task, 4, Excluder(), 3, 1, journal) == whole
            assert {e.id for e in journal.added} == {e.id for e in whole[kept:]}
        assert actor.calls == 0


def test_a_fully_recalled_group_does_not_ask_the_reflector(prompts):
    runner, reflector = vault_runner(prompts, Guesser()), Excluder()
    task = next(task for task in TASKS if len(run(runner, task, 2, Excluder(), group=3)) == 4)
    journal = Recorded(run(runner, task, 2, Excluder(), group=3))
    run(runner, task, 2, reflector, group=3, journal=journal)
    assert reflector.requests == []


def test_stored_reflections_win_over_fresh_ones(prompts):
    class Other(Excluder):
        async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
            return [Reflection("not 0", "other", index) for index in range(request.count)]

    runner = vault_runner(prompts, Guesser())
    task = next(task for task in TASKS if len(run(runner, task, 2, Excluder(), group=3)) == 4)
    journal = Recorded(run(runner, task, 2, Excluder(), group=3)[:2])
    again = run(runner, task, 2, Other(), group=3, journal=journal)
    assert [e.reflection.source for e in again[1:]] == ["test", "other", "other"]


def test_an_actors_error_is_returned_not_recorded_and_ends_the_chain(prompts):
    for failing in range(1, 12):
        for task in TASKS[:10]:
            journal = Recorded()
            runner = vault_runner(prompts, Guesser(fails=frozenset({failing})))
            episodes = run(runner, task, 4, Excluder(), group=3, controls=1, journal=journal)
            errors = [e for e in episodes if e.stop is StopReason.ACTOR_ERROR]
            assert [e for e in episodes if e not in errors] == sorted(journal.added, key=episodes.index)
            if errors:
                assert max(e.trial for e in episodes) == errors[0].trial
            resumed = run(vault_runner(prompts, Guesser()), task, 4, Excluder(), 3, 1, journal)
            assert resumed == run(vault_runner(prompts, Guesser()), task, 4, Excluder(), 3, 1)


class Short(Excluder):
    """Cannot read an episode of three steps."""

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        if len(request.episode.trajectory.steps) == 3:
            raise PromptTooLongError("3 steps are too many")
        return await super().reflect(request)


def test_an_episode_too_long_to_reflect_on_ends_its_chain_and_is_told(prompts):
    told = 0
    for task in TASKS:
        journal, skipped = Recorded(), []
        episodes = run(vault_runner(prompts, Guesser()), task, 4, Short(), 2, 1, journal, skipped.append)
        assert sorted(e.id for e in episodes) == sorted(journal)
        children = {episode.parent for episode in episodes}
        for unreflected in skipped:
            assert unreflected.episode.failed and unreflected.episode.id not in children
            assert unreflected.reason == "3 steps are too many"
        told += len(skipped)
        again = run(vault_runner(prompts, Guesser()), task, 4, Excluder(), 2, 1, journal)
        assert again == run(vault_runner(prompts, Guesser()), task, 4, Excluder(), 2, 1)
    assert told > 10


def test_without_a_listener_an_unreflected_episode_is_logged(prompts, caplog):
    for task in TASKS[:20]:
        run(vault_runner(prompts, Guesser()), task, 2, Short())
    assert "no reflection, so no further attempt: 3 steps are too many" in caplog.text


def test_a_reflector_that_returns_too_few_is_named(prompts):
    class Silent(Excluder):
        async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
            return []

    runner = vault_runner(prompts, Guesser())
    failing = next(task for task in TASKS if not run(runner, task, 1)[0].success)
    with pytest.raises(ValueError, match="Silent returned 0 reflections; asked for 1"):
        run(runner, failing, 2, Silent())


def test_a_single_attempt_is_the_loops_own(prompts):
    runner = vault_runner(prompts, Guesser())
    task = next(task for task in TASKS if len(run(runner, task, 2, Excluder(), 2, 1)) == 4)
    first, one, two, control = run(runner, task, 2, Excluder(), 2, 1)
    key = vault_plan(2).key
    assert asyncio.run(runner.play(Attempt.retry(key, first, (), one.reflection, 0))) == one
    assert asyncio.run(runner.play(Attempt.retry(key, first, (), two.reflection, 1))) == two
    assert asyncio.run(runner.play(Attempt.retry(key, first, (), None, 0))) == control


def test_all_of_raises_the_first_error_itself_and_cancels_the_others():
    cancelled = []

    async def waits():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def fails():
        await asyncio.sleep(0)
        raise LookupError("this one")

    with pytest.raises(LookupError, match="this one"):
        asyncio.run(all_of([waits(), fails(), waits()]))
    assert cancelled == [True, True]


def test_all_of_keeps_the_order():
    async def after(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(all_of(after(turns) for turns in (3, 0, 2))) == [3, 0, 2]
