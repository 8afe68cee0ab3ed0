"""One play of a task."""

import asyncio
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from small_world import Guesser, Vault, Vaults, vault_player, vault_prompts

from retro.envs.base import EnvironmentFailedError, UnknownTaskError
from retro.prompts import LEFT_OUT
from retro.rollout.attempts import Attempt
from retro.rollout.runner import LocalRunner
from retro.types import (
    Completion,
    Prompt,
    Reflection,
    Sampling,
    Split,
    StopReason,
    Task,
    TokenLimit,
    Usage,
    derive_seed,
)

TASKS = Vaults().tasks(Split.TRAIN, 40)


@pytest.fixture
def prompts(tmp_path):
    return vault_prompts(tmp_path)


KEY = (0, "test")


def play(player, task, trial=0, path=(), parent=None, index=0, control=False, key=KEY):
    with closing(LocalRunner(player)) as runner:
        return asyncio.run(runner.play(Attempt(key, task, trial, parent, path, index, control)))


def test_every_ending_has_its_reason_and_return(prompts):
    player = vault_player(prompts, Guesser())
    endings = {}
    for task in TASKS:
        episode = play(player, task)
        last = episode.trajectory.steps[-1].observation
        endings[episode.stop] = last
        assert episode.success == (last == "It opens.") == (episode.return_ == 1.0)
        assert episode.failed is not episode.success
        assert episode.usage.completion_tokens == 2 * len(episode.trajectory.steps)
    assert endings == {
        StopReason.SUCCESS: "It opens.",
        StopReason.FAILURE: "Alarm!",
        StopReason.HORIZON: "Nothing happens.",
    }


def test_each_call_has_its_own_seed_one_session_and_the_stop_strings(prompts):
    actor = Guesser()
    episode = play(vault_player(prompts, actor), TASKS[1], 2, (), "p", 3, key=(7, "test"))
    assert [sampling.seed for sampling in actor.samplings] == [
        derive_seed(7, "test", TASKS[1].id, 2, "p", 3, step) for step in range(len(actor.samplings))
    ]
    assert {sampling.session for sampling in actor.samplings} == {episode.id}
    assert {sampling.stop for sampling in actor.samplings} == {("\n",)}
    assert (episode.trial, episode.parent) == (2, "p")


def test_the_actor_sees_the_memory_window_and_its_own_steps(prompts):
    class Reader(Guesser):
        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            read.append(prompt)
            return await super().complete(prompt, sampling)

    read: list[Prompt] = []
    reflections = tuple(Reflection(f"not {digit}", "test") for digit in (1, 2, 3))
    episode = play(vault_player(prompts, Reader()), TASKS[0], 3, reflections, "p")
    assert str(read[0]).startswith("not 2\nnot 3\nOpen the vault.")
    assert str(read[-1]).startswith(str(read[0]))
    assert episode.reflection == reflections[-1]


def test_a_control_has_the_memory_before_it_and_no_reflection_of_its_own(prompts):
    player = vault_player(prompts, Guesser())
    before = (Reflection("not 1", "test"),)
    episode = play(player, TASKS[0], 2, before, "p", 0, control=True)
    assert episode.reflection is None
    assert episode.parent == "p"
    assert episode.id != Attempt(KEY, TASKS[0], 2, "p").id


def test_ids_are_known_before_and_differ_in_everything_that_names_an_episode(prompts):
    task = TASKS[0]
    attempts = [
        Attempt(KEY, task),
        Attempt((1, "test"), task),
        Attempt(KEY, TASKS[1]),
        Attempt(KEY, Task("other", task.id, task.split)),
        Attempt(KEY, task, 1, "p"),
        Attempt(KEY, task, 1, "q"),
        Attempt(KEY, task, 2, "p"),
        Attempt(KEY, task, 1, "p", index=1),
        Attempt(KEY, task, 1, "p", index=1, control=True),
    ]
    assert len({attempt.id for attempt in attempts}) == len(attempts)
    assert play(vault_player(prompts, Guesser()), task, 1, (), "p", 1).id == attempts[7].id
    assert Attempt(KEY, task).id == "789b0043a85986e1de52d858c904b9a7", (
        "ids name what old runs have played: they never change"
    )


def test_an_actor_that_fails_ends_the_episode_with_what_was_played(prompts):
    stepping = next(task for task in TASKS if len(play(vault_player(prompts, Guesser()), task).trajectory.steps) > 1)
    episode = play(vault_player(prompts, Guesser(fails=frozenset({2}))), stepping)
    assert episode.stop is StopReason.ACTOR_ERROR
    assert episode.info == {"error": "the server is gone"}
    assert len(episode.trajectory.steps) == 1
    assert not episode.failed and not episode.success


def test_any_other_error_is_not_taken_for_the_actors(prompts):
    class Broken(Guesser):
        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        play(vault_player(prompts, Broken()), TASKS[0])
    with pytest.raises(UnknownTaskError):
        play(vault_player(prompts, Guesser()), Task("other", "x", Split.TRAIN))


def test_half_a_surrogate_pair_becomes_a_question_mark_before_it_enters_the_episode(prompts):
    class Odd(Guesser):
        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            str(prompt).encode()
            return Completion("try \ud83d", "stop")

    class Halves(Vaults):
        def make(self, task):
            return Half(0)

    class Half(Vault):
        def reset(self, seed=None, options=None):
            return "Open \udc80 the vault.", {"success": False}

        def step(self, action):
            heard.append(action)
            if len(heard) == 2:
                raise EnvironmentFailedError("broke at \ud800")
            return "\ud83dx", 0.0, False, False, {"success": False}

    heard: list[str] = []
    episode = play(replace(vault_player(prompts, Odd()), taskset=Halves()), TASKS[0])
    assert heard == ["try ?", "try ?"]
    assert (episode.trajectory.opening, episode.trajectory.steps[0].observation) == ("Open ? the vault.", "?x")
    assert episode.info == {"error": "broke at ?"}


def test_odd_actions_go_to_the_environment(prompts):
    class Odd(Guesser):
        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            self.calls += 1
            return Completion(["", "  ", "☃" * 1000][self.calls - 1], "length")

    episode = play(vault_player(prompts, Odd()), TASKS[0])
    assert episode.stop is StopReason.HORIZON
    assert [step.action for step in episode.trajectory.steps] == ["", "", "☃" * 1000]


def test_the_return_is_the_exact_sum_of_the_rewards(prompts):
    class Graded(Vault):
        def step(self, action):
            self.steps += 1
            return "ok", [0.3, 0.3, 0.4][self.steps - 1], self.steps == 3, False, {"success": self.steps == 3}

    class Gradeds(Vaults):
        def make(self, task):
            return Graded(0)

    assert play(replace(vault_player(prompts, Guesser()), taskset=Gradeds()), TASKS[0]).return_ == 1.0


class Blocking(Vaults):
    """Vaults whose every call must come from another thread than the loop's; two engines for all of them."""

    blocking = True

    def __init__(self) -> None:
        self.loop_thread = threading.get_ident()
        self.engines = threading.Semaphore(2)
        self.open = 0
        self.closed = 0

    def make(self, task: Task) -> "BlockingVault":
        return BlockingVault(super().make(task).secret, self)


class BlockingVault(Vault):
    def __init__(self, secret: int, vaults: Blocking) -> None:
        super().__init__(secret)
        self.vaults = vaults

    def reset(self, seed=None, options=None):
        assert threading.get_ident() != self.vaults.loop_thread
        self.vaults.engines.acquire()
        self.vaults.open += 1
        return super().reset(seed, options)

    def step(self, action):
        assert threading.get_ident() != self.vaults.loop_thread
        return super().step(action)

    def close(self):
        assert threading.get_ident() != self.vaults.loop_thread
        self.vaults.open -= 1
        self.vaults.closed += 1
        self.vaults.engines.release()


def test_plays_that_wait_for_an_engine_do_not_keep_others_from_their_steps(prompts):
    vaults = Blocking()
    player = replace(vault_player(prompts, Guesser()), taskset=vaults)

    async def all_at_once():
        return await asyncio.gather(*(runner.play(Attempt(KEY, task)) for task in TASKS))

    with closing(LocalRunner(player, len(TASKS))) as runner:
        played = asyncio.run(all_at_once())
    plain = vault_player(prompts, Guesser())
    assert played == [play(plain, task) for task in TASKS]
    assert (vaults.open, vaults.closed) == (0, len(TASKS))


def test_what_does_not_block_is_played_in_the_loops_thread_also_beside_what_does(prompts):
    class Mixed(Blocking):
        def blocks(self, task: Task) -> bool:
            return task == TASKS[0]

        def make(self, task: Task) -> Vault:
            return super().make(task) if self.blocks(task) else Seen(0)

    class Seen(Vault):
        def step(self, action):
            threads.add(threading.get_ident())
            return super().step(action)

    threads: set[int] = set()
    vaults = Mixed()
    player = replace(vault_player(prompts, Guesser()), taskset=vaults)
    for task in TASKS[:2]:
        play(player, task)
    assert vaults.closed == 1
    assert threads == {vaults.loop_thread}


def test_a_play_that_is_cancelled_closes_its_environment(prompts):
    vaults = Blocking()

    class Endless(Guesser):
        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            asked.set()
            await asyncio.sleep(3600)
            raise AssertionError("nobody waits that long")

    async def cancelled() -> None:
        runner = LocalRunner(replace(vault_player(prompts, Endless()), taskset=vaults))
        plays = [asyncio.create_task(runner.play(Attempt(KEY, task))) for task in TASKS[:5]]
        await asked.wait()
        for running in plays:
            running.cancel()
        ended = await asyncio.gather(*plays, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)

    asked = asyncio.Event()
    asyncio.run(cancelled())
    assert vaults.open == 0


def test_an_environment_that_breaks_ends_the_episode_and_is_closed(prompts):
    closed = []

    class Breaking(Vault):
        def step(self, action):
            if self.steps == 1:
                raise EnvironmentFailedError("the worker died")
            return super().step("try nothing")

        def close(self):
            closed.append(self.steps)

    class Breakings(Vaults):
        def make(self, task):
            return Breaking(0)

    episode = play(replace(vault_player(prompts, Guesser()), taskset=Breakings()), TASKS[0])
    assert episode.stop is StopReason.ENVIRONMENT_ERROR
    assert episode.info == {"error": "the worker died"}
    assert len(episode.trajectory.steps) == 1
    assert episode.broken and not episode.failed
    assert closed == [1]


def test_a_prompt_beyond_the_actors_limit_is_shortened_or_ends_the_episode(prompts):
    class Short(Guesser):
        prompt_limit = TokenLimit(lambda text: len(text.split()), 12, "actor.context_tokens")

        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            read.append(str(prompt))
            return Completion("try nothing", "stop", Usage(3, 1))

    class Talking(Vault):
        def step(self, action):
            _, reward, terminated, truncated, info = super().step(action)
            return "nothing of what was hoped for happens", reward, terminated, truncated, info

    class Talkings(Vaults):
        def make(self, task):
            return Talking(0)

    read: list[str] = []
    player = replace(vault_player(prompts, Short()), taskset=Talkings())
    episode = play(player, TASKS[0])
    assert LEFT_OUT in read[-1]
    assert all(len(prompt.split()) <= 12 for prompt in read)
    assert episode.stop in (StopReason.HORIZON, StopReason.CONTEXT)
    assert [step.usage for step in episode.trajectory.steps] == [Usage(3, 1)] * len(episode.trajectory.steps)
    Short.prompt_limit = TokenLimit(lambda text: len(text.split()), 2, "actor.context_tokens")
    failed = play(player, TASKS[0])
    assert failed.stop is StopReason.CONTEXT
    assert failed.failed and not failed.broken  # it would end so each time
    assert "raise actor.context_tokens" in failed.info["error"]
