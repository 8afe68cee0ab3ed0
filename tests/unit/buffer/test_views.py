from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from retro.buffer import ReplayBuffer
from retro.buffer.views import contexts, rated_reflections, sft_examples
from retro.types import Episode, Split, Task, Trajectory

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
    assert sft_examples(filled, "delta_return", 0.3) == []
    (over,) = sft_examples(filled, "over_control", 0.0)
    assert over.rating == pytest.approx(0.15)


def test_contexts_are_failed_episodes_with_their_path(filled: ReplayBuffer) -> None:
    found = contexts(filled, [Split.TEST])
    assert {context.episode.id for context in found} == {"test", "test-0", "test-1", "test-2", "test-3", "test-control"}
    paths = {context.episode.id: [reflection.text for reflection in context.path] for context in found}
    assert paths["test"] == paths["test-control"] == []
    assert paths["test-0"] == ["good test"]


def test_splits_never_share_a_task_and_environments_are_filtered(filled: ReplayBuffer) -> None:
    tasks = [{item.context.episode.task.id for item in rated_reflections(filled, "group", [split])} for split in Split]
    assert not set.intersection(*tasks)
    assert rated_reflections(filled, "group", environments=["alfworld"]) == []
    assert len(rated_reflections(filled, "group", environments=["household"])) == 12
