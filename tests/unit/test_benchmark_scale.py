"""The benchmark of a large buffer, with a small one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scale import PER_TASK, READS, made_up, main


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scale.CONTEXTS", 10)
    arguments = ["--json", str(tmp_path / "scale.json"), "--episodes", "61", "--writers", "0", "--steps", "1"]
    main(arguments)  # the memory is that of this process, which has imported torch
    (side,) = json.loads((tmp_path / "scale.json").read_text())["sides"]
    assert side["episodes"] == 10 * PER_TASK
    assert set(side["laps"]) == set(READS)
    ratings = [side["found"][name] for name in READS if name.startswith("ratings")]
    assert ratings == [32, 32, 32]  # four reflections on each of eight training tasks
    assert 0 < side["found"]["an epoch of sft"] < 32
    assert side["found"]["1,000 contexts at random"] == 10
    assert "added in a second" in capsys.readouterr().out


def test_the_episodes_are_the_same_in_every_process() -> None:
    assert made_up(7, 2) == made_up(7, 2)
    assert len({episode.id for number in range(3) for episode in made_up(number, 1)}) == 3 * PER_TASK
