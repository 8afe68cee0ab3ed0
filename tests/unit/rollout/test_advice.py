"""Advice on demand: an actor asks for a reflection in the middle of an episode."""

import asyncio
import pickle
from contextlib import closing
from dataclasses import dataclass, replace

import pytest
from small_world import Guesser, Vault, Vaults, vault_plan, vault_player, vault_prompts

from retro.config import ActorSection, CollectSection
from retro.prompts import PromptTooLongError
from retro.rollout.advice import ASK
from retro.rollout.attempts import Attempt, Episodes, Plan
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.rollout.trials import run_trials
from retro.types import (
    Advice,
    Completion,
    Episode,
    Prompt,
    Reflection,
    ReflectionRequest,
    Sampling,
    Split,
    StopReason,
    Usage,
)

TASKS = Vaults().tasks(Split.TRAIN, 40)


class Asker(Guesser):
    """Asks for advice after its first guess, and after each advice ``more`` times; otherwise it guesses."""

    def __init__(self, more: int = 0) -> None:
        super().__init__()
        self.more = more
        self.prompts: list[str] = []

    def guess(self, prompt: Prompt, sampling: Sampling) -> Completion:
        assert isinstance(prompt, str)
        self.prompts.append(prompt)
        tries, asked = prompt.count("> try"), prompt.count(f"> {ASK}")
        if tries == 1 and asked <= self.more:
            return Completion(f" {ASK.capitalize()} ", "stop", Usage(len(prompt.split()), 4))
        return super().guess(prompt, sampling)


class Adviser:
    """Says of the latest guess that it was wrong."""

    def __init__(self) -> None:
        self.requests: list[ReflectionRequest] = []

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        self.requests.append(request)
        guess = [step.action for step in request.episode.trajectory.steps if step.action.startswith("try")][-1]
        return [Reflection(f"not {guess[-1]}", "test", index, usage=Usage(20, 2)) for index in range(request.count)]


@dataclass
class Elsewhere:
    """A runner whose attempts and episodes pass through pickles, as those of worker processes do."""

    local: LocalRunner
    concurrency: int = 4

    async def play(self, attempt: Attempt) -> Episode:
        return pickle.loads(pickle.dumps(await self.local.play(pickle.loads(pickle.dumps(attempt)))))

    def close(self) -> None:
        self.local.close()


@pytest.fixture
def prompts(tmp_path):
    return vault_prompts(tmp_path)


def trees(player: Player, plan: Plan, adviser: Adviser | None = None, elsewhere: bool = False):
    with closing(LocalRunner(player)) as local:
        runner = Elsewhere(local) if elsewhere else local
        return [asyncio.run(run_trials(runner, task, plan, adviser or Adviser())) for task in TASKS]


def test_the_actor_reads_a_reflection_on_its_attempt_so_far_which_costs_a_step_and_is_recorded(prompts):
    actor, adviser = Asker(), Adviser()
    played = [tree[0] for tree in trees(vault_player(prompts, actor), replace(vault_plan(1), advice=2), adviser)]
    advised = [episode for episode in played if episode.advice]
    assert len(advised) > 30
    for episode, request in zip(advised, adviser.requests, strict=True):
        first, asked, *rest = steps = episode.trajectory.steps
        given = Reflection(f"not {first.action[-1]}", "test", 0, usage=Usage(20, 2))
        assert request.episode.trajectory.steps[0] == first and request.episode.stop is StopReason.ASKED
        assert (asked.action.casefold(), asked.observation) == (ASK, f"advice: {given.text}")
        assert asked.usage.completion_tokens == 4  # the actor's own tokens; those of the advice are the reflection's
        assert len(rest) == 1 and rest[0].action != first.action  # the third step is the last one of a vault
        assert episode.advice == (Advice(1, given),)
        assert episode.usage == sum((step.usage for step in steps), Usage())
        assert episode.stop is not StopReason.ASKED and episode.trajectory.opening == "Open the vault."
        assert [step.action for step in episode.without_advice().trajectory.steps] == [first.action, rest[0].action]
    assert all(f"Open the vault.\nYou may also {ASK}, up to 2 times: " in prompt for prompt in actor.prompts)


def test_an_actor_that_may_not_ask_or_asked_too_often_is_answered_by_the_environment(prompts):
    actor = Asker(more=1)
    once = [tree[0] for tree in trees(vault_player(prompts, actor), replace(vault_plan(1), advice=1))]
    asked = [episode for episode in once if episode.advice]
    assert asked and all(", once: the action" in prompt for prompt in actor.prompts)
    for episode in asked:
        assert [step.observation for step in episode.trajectory.steps][2] == "Nothing happens."
        assert len(episode.advice) == 1
    unoffered = Asker()
    never = [tree[0] for tree in trees(vault_player(prompts, unoffered), vault_plan(1))]
    assert not any("advice" in episode.info for episode in never)
    assert not any("You may" in prompt for prompt in unoffered.prompts)


def test_where_an_attempt_is_played_and_what_was_played_before_change_nothing(prompts):
    plan = replace(vault_plan(3, 2, 1), advice=1)
    whole = trees(vault_player(prompts, Asker()), plan)
    assert trees(vault_player(prompts, Asker()), plan, elsewhere=True) == whole
    assert any(episode.advice and episode.reflection for tree in whole for episode in tree)
    tree = max(whole, key=len)
    half = Episodes({episode.id: episode for episode in tree[: len(tree) // 2]})
    with closing(LocalRunner(vault_player(prompts, Asker()))) as runner:
        assert asyncio.run(run_trials(runner, tree[0].task, plan, Adviser(), half)) == tree
    failed = next(episode for episode in tree if episode.advice)
    kept = Attempt((0, "on"), failed.task, 1, failed.id, kept=failed.trajectory.steps[:2])
    with closing(LocalRunner(vault_player(prompts, Guesser()))) as runner:  # a retry may keep the advice of its parent
        retry = asyncio.run(runner.play(kept))
    assert not retry.broken and not retry.advice and len(retry.trajectory.steps) == 3


def test_an_attempt_too_long_for_advice_keeps_the_environments_answer(prompts):
    class Short(Adviser):
        async def reflect(self, request):
            raise PromptTooLongError("too long")

    for (episode,) in trees(vault_player(prompts, Asker()), replace(vault_plan(1), advice=1), Short()):
        assert not episode.advice and not episode.broken
        assert {step.observation for step in episode.trajectory.steps[1:2]} <= {"Nothing happens."}


def test_an_environment_that_does_not_answer_equally_is_reported(prompts):
    class Drifting(Vaults):
        plays = 0

        def make(self, task):
            self.plays += 1
            return Talking(self.plays)

    class Talking(Vault):
        def step(self, action):
            return f"door {self.secret}", 0.0, False, False, {"success": False}

    player = replace(vault_player(prompts, Asker()), taskset=Drifting())
    episode = trees(player, replace(vault_plan(1), advice=1))[0][0]
    assert episode.stop is StopReason.ENVIRONMENT_ERROR
    assert "without advice (advice=0)" in episode.info["error"]


def test_advice_needs_someone_who_writes_it_and_is_off_by_default(prompts):
    with (
        closing(LocalRunner(vault_player(prompts, Guesser()))) as runner,
        pytest.raises(ValueError, match="advice = 0"),
    ):
        asyncio.run(run_trials(runner, TASKS[0], replace(vault_plan(2), advice=1)))
    assert [Plan.of((0,), CollectSection(**keys), ActorSection()).advice for keys in ({}, {"advice": 2})] == [0, 2]


def test_an_info_that_says_something_else_is_not_advice():
    episode = Episode("e", TASKS[0], 0, trajectory=None, return_=0, success=False, stop=StopReason.FAILURE)
    for other in ("be quick", [{"step": -1}], {"step": 0}, None):
        assert replace(episode, info={"advice": other}).advice == ()
