"""The words: plain JSON and back, what counts as failed, and seeds that depend on their key alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.types import (
    Actor,
    Completion,
    Episode,
    Prompt,
    Reflection,
    Sampling,
    Split,
    Step,
    StopReason,
    Task,
    Trajectory,
    Usage,
    derive_seed,
    from_json,
    to_json,
)

texts = st.text(max_size=30)
usages = st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**6))
reflections = st.builds(
    Reflection,
    text=texts,
    source=texts,
    index=st.integers(0, 9),
    finish_reason=st.sampled_from(["stop", "length"]),
    usage=usages,
    score=st.none() | st.floats(-10, 10),
)
steps = st.builds(Step, action=texts, observation=texts, reward=st.floats(0, 1), thought=texts)
episodes = st.builds(
    Episode,
    id=texts,
    task=st.builds(Task, environment=texts, id=texts, split=st.sampled_from(Split), kind=texts),
    trial=st.integers(0, 9),
    trajectory=st.builds(Trajectory, opening=texts, steps=st.lists(steps, max_size=4).map(tuple)),
    return_=st.floats(0, 1),
    success=st.booleans(),
    stop=st.sampled_from(StopReason),
    parent=st.none() | texts,
    reflection=st.none() | reflections,
    seed=st.integers(0, 2**63 - 1),
    usage=usages,
    info=st.dictionaries(texts, texts | st.integers(-5, 5) | st.booleans(), max_size=3),
)


def an_episode(**changes: Any) -> Episode:
    values: dict[str, Any] = {
        "id": "e",
        "task": Task("household", "train-1", Split.TRAIN),
        "trial": 0,
        "trajectory": Trajectory("You are in a room."),
        "return_": 0.3,
        "success": False,
        "stop": StopReason.HORIZON,
    }
    return Episode(**(values | changes))


@given(episodes)
def test_an_episode_survives_json(episode: Episode) -> None:
    assert from_json(Episode, json.loads(json.dumps(to_json(episode)))) == episode


def test_what_is_missing_is_named() -> None:
    value = to_json(an_episode())
    del value["task"]["id"]
    with pytest.raises(ValueError, match=r"task\.id"):
        from_json(Episode, value)


def test_only_an_episode_that_was_played_to_its_end_failed() -> None:
    assert an_episode().failed
    assert an_episode(stop=StopReason.FAILURE).failed
    assert not an_episode(success=True, stop=StopReason.SUCCESS).failed
    assert not an_episode(stop=StopReason.ACTOR_ERROR).failed


def test_usage_adds_up() -> None:
    assert Usage(1, 2) + Usage(3, 4) == Usage(4, 6)
    assert Usage(1, 2).total == 3


def test_a_seed_depends_on_its_whole_key_and_on_nothing_else() -> None:
    assert derive_seed(0, "collect", 1) == derive_seed(0, "collect", 1) == 1891507791641839053
    keys = [(0, "a"), (0, "b"), (1, "a"), ("0", "a", ""), (0, "a", 0), ("0a",), (0, "a", 0, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


@given(st.lists(st.integers() | texts, max_size=5))
def test_a_seed_fits_every_generator(key: list[str | int]) -> None:
    assert 0 <= derive_seed(*key) < 2**63


def test_whoever_completes_is_an_actor() -> None:
    class Parrot:
        async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
            return Completion(str(prompt), "stop")

    assert isinstance(Parrot(), Actor)
    assert not isinstance(object(), Actor)
