from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from typing import cast

import pytest
from sqlalchemy import RowMapping

from retro.buffer import ReplayBuffer
from retro.buffer.schema import to_episode
from retro.buffer.stats import buffer_stats
from retro.buffer.views import StoredContexts, contexts, rated_reflections, sft_examples
from retro.config import RewardSection
from retro.retrospective.encoding import Encoder
from retro.training.reward_data import read_groups
from retro.types import Episode, Reflection, Split, Task, Trajectory

Make = Callable[..., Episode]


@pytest.fixture
def filled(buffer: ReplayBuffer, make: Make) -> ReplayBuffer:
    for split in Split:
        root = make(f"{split}", 0.3, task=Task("household", f"task-{split}", split))
        buffer.add(root)
        for index, (value, text) in enumerate([(0.6, "good"), (0.3, "same"), (0.0, "bad"), (0.3, "bad")]):
            buffer.add(make(f"{split}-{index}", value, parent=root, text=f"{text} {split}", index=index))
        buffer.add(make(f"{split}-control", 0.45, parent=root))
    outcome_only = replace(make("log", 0.0, task=Task("alfworld", "env_1", Split.TRAIN)), trajectory=Trajectory(""))
    buffer.add(outcome_only)
    buffer.add(replace(make("log-next", 1.0, parent=outcome_only, text="never read"), trajectory=Trajectory("")))
    return buffer


def test_sft_reads_what_is_rated_above_the_threshold_on_training_tasks(filled: ReplayBuffer) -> None:
    (example,) = sft_examples(filled, "delta_return", 0.0)
    assert example.reflection.text == "good train"
    assert example.rating == pytest.approx(0.3)
    assert example.context.episode.id == "train"
    assert list(sft_examples(filled, "delta_return", 0.3)) == []
    (over,) = sft_examples(filled, "over_control", 0.0)
    assert over.rating == pytest.approx(0.15)


def test_contexts_are_failed_episodes_with_their_path(filled: ReplayBuffer) -> None:
    found = list(contexts(filled, [Split.TEST]))
    assert {context.episode.id for context in found} == {"test", "test-0", "test-1", "test-2", "test-3", "test-control"}
    paths = {context.episode.id: [reflection.text for reflection in context.path] for context in found}
    assert paths["test"] == paths["test-control"] == []
    assert paths["test-0"] == ["good test"]


def test_splits_never_share_a_task_and_environments_are_filtered(filled: ReplayBuffer) -> None:
    tasks = [{item.context.episode.task.id for item in rated_reflections(filled, "group", [split])} for split in Split]
    assert not set.intersection(*tasks)
    assert list(rated_reflections(filled, "group", environments=["alfworld"])) == []
    assert len(list(rated_reflections(filled, "group", environments=["household"]))) == 12


def test_a_context_is_read_again_as_it_was_when_it_is_needed(filled: ReplayBuffer) -> None:
    found = list(contexts(filled, [Split.TEST]))
    stored = StoredContexts(filled, iter(found))
    assert (len(stored), stored.environments) == (6, {"household"})
    assert [*stored] == stored[:] == found
    assert any(context.path for context in stored)


def live_episodes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts the episodes of the store that are alive at once; a call returns the most since the last call."""

    class Watched(Episode):
        __slots__ = ("__weakref__",)

    live: weakref.WeakSet[Episode] = weakref.WeakSet()
    most = 0

    def to_watched(row: RowMapping) -> Episode:
        nonlocal most
        episode = to_episode(row)
        watched = Watched(**{field.name: getattr(episode, field.name) for field in fields(episode)})
        live.add(watched)
        most = max(most, len(live))
        return watched

    def taken() -> int:
        nonlocal most
        most, found = 0, most
        return found

    monkeypatch.setattr("retro.buffer.store.to_episode", to_watched)
    monkeypatch.setattr(Episode, "__hash__", object.__hash__)  # a set compares them by identity
    return taken


class Words:
    """Stands for an encoder: a token a word."""

    def prompt(self, episode: Episode) -> list[int]:
        return [len(word) for word in episode.trajectory.opening.split()]

    def response(self, reflection: Reflection) -> list[int]:
        return [len(word) for word in reflection.text.split()]


READERS: dict[str, Callable[[ReplayBuffer], object]] = {
    "groups": lambda buffer: sum(1 for _ in buffer.groups()),
    "failures": lambda buffer: sum(1 for _ in buffer.failures()),
    "sft": lambda buffer: [item.rating for item in sft_examples(buffer, "group", -9.0)],
    "reward": lambda buffer: read_groups(buffer, RewardSection(), cast(Encoder, Words()), Split.TRAIN, ()),
    "ppo": lambda buffer: StoredContexts(buffer, contexts(buffer)),
    "stats": buffer_stats,
    "digest": ReplayBuffer.digest,
}


def test_no_reader_has_more_than_the_episodes_of_a_task_in_memory(
    buffer: ReplayBuffer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with buffer.transaction() as add:
        for number in range(40):
            root = make(f"{number}", task=Task("household", f"task-{number:03}", Split.TRAIN))
            add(root)
            add(make(f"{number}-0", 0.6, parent=root, text="open it"))
    taken = live_episodes(monkeypatch)
    for name, read in READERS.items():
        assert read(buffer), name
        assert taken() <= (0 if name in ("stats", "digest") else 7), name  # two of this task, of the last, of the next
