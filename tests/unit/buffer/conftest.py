"""A buffer on disk, and the maker of episodes for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from buffer_episodes import make_episode

from retro.buffer import ReplayBuffer
from retro.types import Episode

Make = Callable[..., Episode]


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[ReplayBuffer]:
    with ReplayBuffer(f"sqlite:///{tmp_path / 'buffer.sqlite'}") as store:
        yield store


@pytest.fixture
def make() -> Make:
    return make_episode
