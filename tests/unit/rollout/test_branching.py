"""Retries that begin within the failed episode, after its last reward."""

import asyncio
from contextlib import closing
from dataclasses import replace

import pytest
from small_world import vault_prompts

from retro.config import ActorSection, CollectSection
from retro.envs.base import Environment, TaskSet
from retro.memory import ReflectionWindow
from retro.rollout.attempts import Attempt, Plan, steps_kept
from retro.rollout.episode import Player
from retro.rollout.runner import LocalRunner
from retro.rollout.trials import run_trials
from retro.types import (
    Completion,
    Prompt,
    Reflection,
    ReflectionRequest,
    Sampling,
    Split,
    StopReason,
    Task,
    Usage,
    derive_seed,
)

DOORS, HORIZON = 3, 6
TASKS = [Task("doors", str(number), Split.TRAIN, "doors") for number in range(40)]


class Doors(Environment):
    """Three doors in a row, each left or right, and a third of the return for each that opens."""

    def __init__(self, task: Task, said: str) -> None:
        self._right = [("left", "right")[derive_seed(task.id, door) % 2] for door in range(DOORS)]
        self._said = said

    def reset(self, seed=None, options=None):
        self.opened = self.steps = 0
        return "Go through.", {"success": False}

    def step(self, action):
        self.steps += 1
        opens = action == self._right[self.opened]
        self.opened += opens
        success = self.opened == DOORS
        said = f"{self._said} {self.opened}" if opens else "It is locked."
        return said, opens / DOORS, success, self.steps == HORIZON and not success, {"success": success}


class DoorWorld(TaskSet):
    name = "doors"
    said = "You are through door"

    def make(self, task: Task) -> Doors:
        return Doors(task, self.said)


class Chooser:
    """Draws left or right, and keeps the prompts."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        assert isinstance(prompt, str)
        self.prompts.append(prompt)
        return Completion(("left", "right")[derive_seed(sampling.seed or 0) % 2], "stop", Usage(10, 1))


class Encourager:
    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        return [Reflection(f"go on, {index}", "test", index) for index in range(request.count)]


@pytest.fixture
def player(tmp_path):
    return Player(DoorWorld(), Chooser(), vault_prompts(tmp_path), ReflectionWindow(), Sampling(1.0, 1.0, 4))


def trees(player: Player, branch: str, group: int = 2):
    plan = Plan((0, "test"), 3, group, 1, branch)
    with closing(LocalRunner(player)) as runner:
        return [asyncio.run(run_trials(runner, task, plan, Encourager())) for task in TASKS]


def test_a_retry_keeps_the_failed_episodes_steps_up_to_its_last_reward(player):
    numbers = []
    for tree in trees(player, "last_reward"):
        by_id = {episode.id: episode for episode in tree}
        assert "kept_steps" not in tree[0].info
        for episode in tree[1:]:
            kept = steps_kept(by_id[episode.parent], "last_reward")
            numbers.append(len(kept))
            assert episode.info.get("kept_steps", 0) == len(kept)
            steps = episode.trajectory.steps
            assert steps[: len(kept)] == tuple(replace(step, usage=Usage()) for step in kept)
            assert episode.usage.completion_tokens == len(steps) - len(kept)  # the actor is not asked for them again
            assert episode.return_ == pytest.approx(sum(step.reward for step in steps))
            if kept:
                assert episode.return_ >= by_id[episode.parent].return_ - 1e-9
    assert len(set(numbers)) > 2


def test_the_actor_reads_what_was_kept_and_the_new_reflection(player):
    retries = [
        episode
        for tree in trees(player, "last_reward", 1)
        for episode in tree
        if episode.info.get("kept_steps") and episode.reflection
    ]
    assert retries
    for retry in retries:
        kept = retry.trajectory.steps[retry.info["kept_steps"] - 1]
        shown = f"> {kept.action}\n{kept.observation}\n> "
        assert any(prompt.endswith(shown) and retry.reflection.text in prompt for prompt in player.actor.prompts)


def test_first_attempts_do_not_depend_on_where_retries_begin(player):
    plain, branched = trees(player, "start"), trees(player, "last_reward")
    assert not any("kept_steps" in episode.info for tree in plain for episode in tree)
    assert [tree[0] for tree in plain] == [tree[0] for tree in branched]
    assert plain != branched


def test_nothing_is_kept_where_no_step_earned_or_where_none_would_be_left(player):
    failed = next(tree[0] for tree in trees(player, "start") if not tree[0].success)
    count = len(failed.trajectory.steps)

    def kept(*rewarded: int) -> int:
        steps = tuple(
            replace(step, reward=0.1 * (number in rewarded)) for number, step in enumerate(failed.trajectory.steps)
        )
        return len(steps_kept(replace(failed, trajectory=replace(failed.trajectory, steps=steps)), "last_reward"))

    assert [kept(), kept(0), kept(1, 3), kept(count - 1)] == [0, 1, 4, 0]


def test_a_world_that_answers_otherwise_is_reported_and_not_played_on(player):
    failed = next(tree[0] for tree in trees(player, "start") if steps_kept(tree[0], "last_reward"))
    asked = len(player.actor.prompts)
    player.taskset.said = "Another door opens, number"
    attempt = Attempt.retry((0, "test"), failed, (), None, branch="last_reward")
    with closing(LocalRunner(player)) as runner:
        episode = asyncio.run(runner.play(attempt))
    assert episode.stop is StopReason.ENVIRONMENT_ERROR
    assert "collect.branch=start" in episode.info["error"]
    assert len(player.actor.prompts) == asked


def test_the_plan_of_a_collection_says_where_retries_begin():
    def plan(**options: object) -> Plan:
        return Plan.of((0,), CollectSection.model_validate(options), ActorSection())

    assert (plan().branch, plan(branch="last_reward").branch) == ("start", "last_reward")
