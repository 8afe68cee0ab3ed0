"""The terms of the reward, what is gathered for them, and their weighted sum."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from retro.buffer.views import Context
from retro.cli.estimate import most_episodes
from retro.config import ConfigError, RewardTermSection, RunConfig, build, parse_config
from retro.models.running import Generated
from retro.rl.advantages import group_normalised
from retro.rollout.attempts import Attempt
from retro.training.policy.groups import Group, Response
from retro.training.policy.rollouts import Rollouts
from retro.training.rewards.base import Reward
from retro.training.rewards.format import FormatOptions, FormatReward
from retro.training.rewards.model import ModelOptions, ModelReward
from retro.types import Episode, Split, Step, StopReason, Task, Trajectory

RETURNS = {None: 0.5, "look": 1.0, "wait": 0.2, "too long": 0.4}
"""What the actor reaches with a reflection, or without one."""


def episode(return_: float, stop: StopReason = StopReason.HORIZON) -> Episode:
    return Episode("e", Task("household", "t", Split.TRAIN), 0, Trajectory("Open."), return_, False, stop)


CONTEXT = Context(episode(0.3))


def response(slot: int, index: int, text: str, finish_reason: Any = "stop") -> Response:
    return Response(slot, index, (5, 6, 1), (-1.0, -1.0, -0.1), text, finish_reason)


def group(slot: int = 0) -> Group:
    return Group(slot, CONTEXT, (response(slot, 0, "look"), response(slot, 1, "wait", "length")))


class Actor:
    """Plays retries by :data:`RETURNS`; those whose (slot, is a control) is in ``lost`` end by an error."""

    def __init__(self, lost: Sequence[tuple[int, bool]] = (), size: int = 2) -> None:
        self.lost, self.size = lost, size
        self.played: list[Attempt] = []

    def play(self, attempts: Sequence[Attempt]) -> list[Episode]:
        self.played += attempts
        return [self._one(item) for item in attempts]

    def _one(self, item: Attempt) -> Episode:
        stop = StopReason.ACTOR_ERROR if (item.index // self.size, item.control) in self.lost else StopReason.HORIZON
        return episode(RETURNS[None if item.reflection is None else item.reflection.text], stop)


class Scores:
    """In the place of the models: one score a response."""

    def scores(self, groups: Sequence[Group]) -> list[list[float]]:
        return [[2.0, -2.0] for _ in groups]


def rollouts(
    reward: Any, actor: Actor, penalty: float = 0.0, temperature: float = 1.0, branch: str = "start"
) -> Rollouts:
    ppo = {"reward": reward, "group": actor.size}
    tree = {"actor": {"temperature": temperature}, "collect": {"branch": branch}, "ppo": ppo}
    config = parse_config(tree, "test")
    terms = [(build(term, reward_folder=Path("none")), term.weight) for term in config.ppo.rewards]
    return Rollouts(config, Scores(), actor, terms, penalty, asyncio.Runner())  # type: ignore[arg-type]


SIGMOID = {"kind": "model", "score": "sigmoid"}
HIGH, LOW = 0.8807970779778823, 0.11920292202211757
"""σ(2) and σ(−2)."""


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("environment", [0.7, -0.1]),
        (SIGMOID, [HIGH, LOW]),
        ({"kind": "over_control", "controls": 2}, [0.5, -0.3]),
        (
            [{"kind": "environment", "weight": 0.75}, {**SIGMOID, "weight": 0.25}],
            [0.75 * 0.7 + 0.25 * HIGH, 0.75 * -0.1 + 0.25 * LOW],
        ),
    ],
)
def test_scores(reward: Any, expected: list[float]) -> None:
    [scored] = rollouts(reward, Actor()).score([group()], 1)
    assert scored.rewards == pytest.approx(expected)


@pytest.mark.parametrize(("branch", "kept"), [("start", 0), ("last_reward", 2)])
def test_retries_and_controls_begin_where_those_of_the_collection_do(branch: str, kept: int) -> None:
    steps = tuple(Step("look", "ok", reward) for reward in (0.1, 0.2, 0.0))
    failed = replace(episode(0.3), trajectory=Trajectory("Open.", steps))
    actor = Actor()
    both = ["environment", {"kind": "over_control", "controls": 1}]
    rollouts(both, actor, branch=branch).score([replace(group(), context=Context(failed))], 1)
    assert [attempt.kept for attempt in actor.played] == [steps[:kept]] * 3


def test_among_equal_returns_the_shorter_has_the_higher_advantage() -> None:
    """And the length decides nothing against a return that is clearly lower."""
    texts_and_tokens = (("look", 12), ("look", 6), ("look", 3), ("wait", 1))
    written = [replace(response(0, i, text), ids=(5,) * tokens) for i, (text, tokens) in enumerate(texts_and_tokens)]
    reward = ["environment", {"kind": "length", "weight": 0.1, "soft_limit": 4}]
    [scored] = rollouts(reward, Actor(size=4)).score([Group(0, CONTEXT, tuple(written))], 1)
    assert scored.rewards == pytest.approx([0.7 - 0.1 * 2, 0.7 - 0.1 * 0.5, 0.7, -0.1])
    longest, longer, short, failed = group_normalised(torch.tensor(scored.rewards), [0] * 4).tolist()
    assert short > longer > longest > failed


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        ("The mug was in drawer 2, so take it from there.", "stop", 2),
        ("The mug was in drawer 2, so take", "length", 1),
        ("I should look in drawer 2. " * 2, "stop", 1),
        ("no " * 40, "length", 0),
        ("Look first.\nAction 3: go to drawer 2", "stop", 1),
        ("  > open drawer 2", "stop", 1),
        ("My next action: open drawer 2.", "stop", 2),
        ("Observation: no no no no no no no", "length", -1),
        (" \n", "length", -2),
        ("", "stop", -2),
    ],
)
def test_the_form_of_a_reflection(text: str, finish_reason: str, expected: float) -> None:
    drawn = Group(0, CONTEXT, (response(0, 0, text, finish_reason),))
    assert asyncio.run(FormatReward(FormatOptions()).score([drawn])) == [[expected]]


def test_logged_reflections_have_few_faults(shared_data: Path) -> None:
    """Those in Reflexion's logs, by GPT models: names that occur often are not repetition."""
    logs = pyarrow.parquet.read_table(shared_data / "logs" / "reflexion_tuples.parquet", columns=["reflection"])
    texts = [text for text in logs["reflection"].to_pylist() if text]
    drawn = Group(0, CONTEXT, tuple(response(0, index, text) for index, text in enumerate(texts)))
    [scores] = asyncio.run(FormatReward(FormatOptions()).score([drawn]))
    assert sum(score < 2 for score in scores) / len(scores) < 0.005


def test_a_response_that_was_cut_loses_the_penalty() -> None:
    [scored] = rollouts("environment", Actor(), penalty=0.4).score([group()], 1)
    assert scored.rewards == pytest.approx([0.7, -0.1 - 0.4])


def test_a_gain_that_is_rounding_is_none() -> None:
    context = Context(episode(0.1 + 0.2))
    asked = replace(group(), context=context, retries=(episode(0.3), episode(0.3)))
    reward: Reward = build(RewardTermSection(), reward_folder=Path("none"))
    assert asyncio.run(reward.score([asked])) == [[0.0, 0.0]]


def test_only_what_the_terms_need_is_played() -> None:
    actor = Actor()
    rollouts(SIGMOID, actor).score([group()], 1)
    assert actor.played == []
    rollouts("environment", actor).score([group(0), group(1)], 1)
    assert [(item.control, item.index) for item in actor.played] == [
        (False, 0),
        (False, 1),
        (False, 2),
        (False, 3),
    ]
    actor = Actor()
    terms = [{"kind": "over_control", "controls": 2}, {"kind": "environment"}]
    rollouts(terms, actor).score([group(0), group(1)], 1)
    assert [item.index for item in actor.played if item.control] == [0, 1, 2, 3]
    assert len(actor.played) == 4 + 4  # once for both terms


def test_for_a_deterministic_actor_the_failed_episode_stands_for_its_control() -> None:
    actor = Actor()
    [scored] = rollouts("over_control", actor, temperature=0.0).score([group()], 1)
    assert scored.rewards == pytest.approx([0.7, -0.1])
    assert all(not item.control for item in actor.played)


@pytest.mark.parametrize("control", [False, True])
def test_a_group_that_lost_an_episode_is_dropped_whole(control: bool) -> None:
    asked = [group(0), group(1)]
    reward = {"kind": "over_control", "controls": 2}
    [kept] = rollouts(reward, Actor(lost=[(0, control)])).score(asked, 1)
    assert kept.slot == 1
    with pytest.raises(ValueError, match="failed in every one of 2 groups"):
        rollouts(reward, Actor(lost=[(0, control), (1, control)])).score(asked, 1)


class LosingActor(Actor):
    """Its second turn in slot 1 ends by an error."""

    def _one(self, item: Attempt) -> Episode:
        played = super()._one(item)
        lost = item.index // self.size == 1 and len(item.path) == 2
        return replace(played, stop=StopReason.ACTOR_ERROR) if lost else played


class Writer:
    """In the place of the models: a reflection on a failed retry, unless the retry is too long."""

    def fits(self, context: Context) -> bool:
        return context.path[-1].text != "too long"

    def sample(self, contexts: Sequence[Context], *_: Any) -> list[list[tuple[Generated, str]]]:
        return [[(Generated([5, 1], [-1.0, -0.1], "stop"), "wait")] for _ in contexts]


@pytest.mark.parametrize("lost", [False, True])
def test_a_chain_ends_at_a_retry_that_is_too_long_and_is_dropped_with_its_group(lost: bool) -> None:
    first = [Group(slot, CONTEXT, (response(slot, 0, "look"), response(slot, 1, "too long"))) for slot in (0, 1)]
    actor = LosingActor() if lost else Actor()
    asked = replace(rollouts("environment", actor), models=Writer(), turns=3)  # type: ignore[arg-type]
    groups = asked.score(first, 1)
    found = [(group.slot, group.turn, [response.index for response in group.responses]) for group in groups]
    whole = [(0, 1, [0, 1]), (1, 1, [0, 1]), (0, 2, [0]), (1, 2, [0]), (0, 3, [0]), (1, 3, [0])]
    assert found == ([item for item in whole if item[0] == 0] if lost else whole)
    assert [group.rewards for group in groups if group.slot == 0] == [
        pytest.approx(rewards) for rewards in ([0.7, 0.1], [-0.8], [0.0])
    ]
    paths = [[reflection.text for reflection in group.context.path] for group in groups if group.slot == 0]
    assert paths == [[], ["look"], ["look", "wait"]]


def test_transforms_of_the_reward_models_score(tmp_path: Path) -> None:
    sigmoid, standardise = ModelOptions(score="sigmoid"), ModelOptions()
    squash = ModelReward.from_options(sigmoid, tmp_path).transform
    assert (squash(0.0), squash(800.0), squash(-800.0)) == (0.5, 1.0, 0.0)
    with pytest.raises(ConfigError, match="run the reward stage"):
        ModelReward.from_options(standardise, tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps({"score_mean": 2.0, "score_std": 4.0, "loss": "bce"}))
    assert ModelReward.from_options(standardise, tmp_path).transform(8.0) == 1.5
    (tmp_path / "reward.json").write_text(json.dumps({"score_mean": 2.0, "score_std": 0.0, "loss": "bce"}))
    with pytest.raises(ConfigError, match=r"all reflections have one score.*score: sigmoid"):
        ModelReward.from_options(standardise, tmp_path)


@pytest.mark.parametrize(
    ("ppo", "temperature", "each"),
    [
        ({}, 0.0, 4),
        ({"reward": "model"}, 1.0, 0),
        ({"reward": {"kind": "over_control", "controls": 3}}, 1.0, 4 + 3),
        ({"reward": {"kind": "over_control", "controls": 3}}, 0.0, 4),
        ({"turns": 2, "advantage": "chain"}, 1.0, 4 + 4),
        ({"turns": 2, "advantage": "chain", "reward": {"kind": "over_control", "controls": 3}}, 1.0, 7 + 4 * (1 + 3)),
        ({"algorithm": "dpo"}, 1.0, 0),
    ],
)
def test_the_estimate_follows_from_what_the_terms_need(ppo: dict[str, Any], temperature: float, each: int) -> None:
    tree = {"actor": {"temperature": temperature}, "ppo": {"steps": 5, "contexts": 2, "validation_contexts": 0, **ppo}}
    config: RunConfig = parse_config(tree, "test")
    assert most_episodes(config)["ppo"] == 5 * 2 * each
