"""The benchmark of growing banks, with small banks, which are full after a few episodes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.memory_growth import ATTEMPTS, MOST, checks, episodes, main, measure
from retro.config.points import POINTS
from retro.memory.bank import learns
from tests.unit.memory.plays import memory_section

BANKS = [kind for kind in POINTS["memory"].kinds if learns(memory_section(kind))]


@pytest.mark.parametrize("kind", BANKS)
def test_a_full_bank_no_longer_grows(kind: str) -> None:
    options: dict[str, object] = {"routines": 2} if kind == "procedures" else {}
    small, large = (measure(memory_section(kind, capacity=5, **options), count) for count in (40, 120))
    assert small.entries == large.entries == (7 if options else 5)
    held = [check for check in checks([small, large]) if check.name.endswith("_bytes")]
    assert len(held) == 2
    assert all(check.holds for check in held), held


def test_growth_is_found() -> None:
    small = measure(memory_section("trajectories", capacity=1_000), 20)
    found = checks([small, replace(small, episodes=40, held_bytes=2 * small.held_bytes)])
    assert [check.name for check in found if not check.holds] == ["trajectories, 2 times as many episodes: held_bytes"]
    assert max(check.figure for check in found) == 2 > MOST


def test_the_episodes_are_in_the_order_of_the_buffer_and_differ() -> None:
    made = list(episodes(40))
    places = [(episode.task.id, episode.trial, episode.id) for episode in made]
    assert all(one < other for one, other in pairwise(places))
    assert len({episode.task.id for episode in made}) == 40 / ATTEMPTS
    assert made == list(episodes(40))
    texts = [episode.reflection.text for episode in made if episode.reflection]
    assert len(set(texts)) == len(texts) == 30
    assert any(episode.success for episode in made) and any(episode.failed and episode.trial for episode in made)


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json", str(tmp_path / "growth.json"), "--episodes", "20", "40", "--kinds", "trajectories"])
    result = json.loads((tmp_path / "growth.json").read_text())
    assert [(own["kind"], own["episodes"]) for own in result["figures"]] == [("trajectories", 20), ("trajectories", 40)]
    assert "trajectories" in capsys.readouterr().out
