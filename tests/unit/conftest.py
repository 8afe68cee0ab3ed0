"""A config on the tiny model, and a run folder whose buffer holds rated groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retro.buffer.store import ReplayBuffer
from retro.config import RunConfig
from tests.builders import run_config
from tests.rated_groups import fill

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path, tiny_model_dir: Path) -> MakeConfig:
    """A config in ``tmp_path`` on the tiny model; keyword arguments are sections."""

    return partial(run_config, tmp_path, tiny_model_dir)


@pytest.fixture
def filled_config(make_config: MakeConfig) -> MakeConfig:
    """:func:`make_config`, with a filled buffer in the run folder."""

    def make(**sections: Any) -> RunConfig:
        config = make_config(**sections)
        with ReplayBuffer(config.buffer_url) as buffer:
            fill(buffer)
        return config

    return make
