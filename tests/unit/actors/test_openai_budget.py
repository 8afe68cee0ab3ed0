"""A collection whose budget is spent stops cleanly, and goes on to the same buffer when the budget is raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retro.actors.budget import BudgetExceededError
from retro.buffer.store import ReplayBuffer
from retro.config import RunConfig
from retro.stage import run_stage
from retro.training.collect import STAGE as COLLECT
from retro.types import Episode
from tests.unit.actors.api_server import Server

MakeConfig = Callable[..., RunConfig]


def episodes(config: RunConfig) -> dict[str, Episode]:
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        return {episode.id: episode for episode in buffer.episodes()}


def test_what_was_played_is_kept_and_the_rest_is_played_later(server: Server, make_config: MakeConfig) -> None:
    def config(name: str, **budget: Any) -> RunConfig:
        return make_config(
            name=name,
            actor={"kind": "openai", "base_url": server.url, "concurrency": 3, "budget": budget},
            environment={"tasks": {"train": 5, "validation": 1, "test": 1}},
            collect={"attempts": 2, "group": 2},
        )

    run_stage(COLLECT, config("whole"))
    whole = episodes(config("whole"))
    cost = sum(episode.usage.total for episode in whole.values())
    assert cost == 15 * len(server.requests)

    before = len(server.requests)
    with pytest.raises(BudgetExceededError, match=r"actor\.budget\.tokens"):
        run_stage(COLLECT, config("stopped", tokens=cost // 2))
    with pytest.raises(BudgetExceededError, match=r"actor\.budget\.tokens"):  # what the ledger holds is not forgotten
        run_stage(COLLECT, config("stopped", tokens=cost // 2))
    spent = 15 * (len(server.requests) - before)
    kept = episodes(config("stopped"))
    assert 0 < len(kept) < len(whole)
    assert kept == {identity: whole[identity] for identity in kept}
    assert spent < cost // 2 + 3 * 15  # three under way, for which more is reserved than they cost

    before = len(server.requests)
    run_stage(COLLECT, config("stopped", tokens=2 * cost))
    assert episodes(config("stopped")) == whole
    assert 15 * (len(server.requests) - before) == cost - sum(episode.usage.total for episode in kept.values())
