"""Many tasks at once."""

import asyncio
import io
import os
import signal

import pytest
from rich.console import Console
from small_world import Excluder, Guesser, Vaults, vault_plan, vault_prompts, vault_runner

from retro.rollout.attempts import Episodes
from retro.rollout.collect import collect
from retro.rollout.progress import CollectionProgress
from retro.types import Completion, Episode, Prompt, Sampling, Split

TASKS = Vaults().tasks(Split.TRAIN, 30)


@pytest.fixture
def prompts(tmp_path):
    return vault_prompts(tmp_path)


def test_thousands_of_tasks_within_the_bound_in_order(prompts):
    actor = Guesser()
    tasks = Vaults().tasks(Split.TRAIN, 3000)
    played = asyncio.run(collect(vault_runner(prompts, actor, 16), tasks, vault_plan(2)))
    assert [episodes[0].task for episodes in played] == tasks
    assert actor.most_under_way <= 16


def test_groups_stay_within_the_bound(prompts):
    class Waiting(Guesser):
        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            await asyncio.sleep(0)
            self.under_way -= 1
            return Completion("try 0", "stop")

    actor = Waiting()
    asyncio.run(collect(vault_runner(prompts, actor, 5), TASKS, vault_plan(3, 8, 2), Excluder()))
    assert actor.most_under_way == 5


def test_an_error_in_one_task_cancels_the_rest_and_is_raised_as_it_is(prompts):
    class Full(Exception):
        pass

    class Small(Episodes):
        def add(self, episode: Episode, /) -> None:
            if len(self) == 7:
                raise Full("the disk is full")
            super().add(episode)

    actor, journal = Guesser(), Small()
    with pytest.raises(Full, match="the disk is full"):
        asyncio.run(collect(vault_runner(prompts, actor, 4), TASKS, vault_plan(4), Excluder(), journal))
    assert len(journal) == 7
    assert actor.under_way == 0


@pytest.fixture
def ctrl_c():
    """Ctrl-C as at a terminal: a shell's background job, and what it starts, ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_was_played_and_the_same_call_goes_on(prompts, ctrl_c):
    whole = asyncio.run(collect(vault_runner(prompts, Guesser()), TASKS, vault_plan(3, 2, 1), Excluder()))

    class Interrupting(Guesser):
        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            completion = await super().complete(prompt, sampling)
            if self.calls == 40:
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0)
            return completion

    class Once(Episodes):
        def add(self, episode: Episode, /) -> None:
            assert episode.id not in self, "played twice"
            super().add(episode)

    known = Once()
    output = io.StringIO()
    progress = CollectionProgress(len(TASKS), console=Console(file=output, width=200))
    with pytest.raises(KeyboardInterrupt):
        runner = vault_runner(prompts, Interrupting(), 8)
        asyncio.run(collect(runner, TASKS, vault_plan(3, 2, 1), Excluder(), known, progress))
    assert 0 < len(known) < sum(map(len, whole))
    assert "interrupted: what was played is kept" in output.getvalue()
    again = asyncio.run(collect(vault_runner(prompts, Guesser()), TASKS, vault_plan(3, 2, 1), Excluder(), known))
    assert again == whole
    assert len(known) == sum(map(len, whole))


def test_impossible_calls_are_refused(prompts):
    with pytest.raises(ValueError, match="listed twice"):
        asyncio.run(collect(vault_runner(prompts, Guesser()), [TASKS[0], TASKS[0]], vault_plan(2)))
    with pytest.raises(ValueError, match="concurrency"):
        vault_runner(prompts, Guesser(), 0)


def test_without_a_terminal_progress_is_a_line_now_and_then(prompts):
    output = io.StringIO()
    progress = CollectionProgress(len(TASKS), "play", Console(file=output, width=200), every_seconds=0.0)
    actor = Guesser(fails=frozenset({3}))
    asyncio.run(collect(vault_runner(prompts, actor), TASKS, vault_plan(2), progress=progress))
    lines = output.getvalue().splitlines()
    assert "left" in lines[len(lines) // 2]
    assert lines[-1].startswith("play: 30/30 tasks · ")
    assert "solved" in lines[-1] and "actor errors 1" in lines[-1]

    quiet = io.StringIO()
    progress = CollectionProgress(len(TASKS), console=Console(file=quiet, width=200))
    asyncio.run(collect(vault_runner(prompts, Guesser()), TASKS, vault_plan(2), progress=progress))
    assert len(quiet.getvalue().splitlines()) == 1


def test_on_a_terminal_progress_is_a_bar(prompts):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    progress = CollectionProgress(len(TASKS), console=console)
    asyncio.run(collect(vault_runner(prompts, Guesser()), TASKS, vault_plan(2), progress=progress))
    assert "30/30" in output.getvalue()
