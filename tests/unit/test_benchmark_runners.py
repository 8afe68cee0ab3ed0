"""The runners' benchmark: what it compares and checks. Nothing is played, since that would start processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pipeline_timing import Lap, Line
from benchmarks.runners import Played, checks, main, overhead_ms, table


def line(ratio: float) -> Line:
    return Line("collect", "episodes/s", (Lap(10.0, 10.0, 100.0),), (Lap(10.0 / ratio, 1.0, 100.0),))


def test_the_episodes_and_the_ratio_are_checked() -> None:
    played = Played()
    for episodes in ("a", "a"):
        played.compare("collect", episodes)
    scripted = line(1.0)
    assert [check.holds for check in checks([line(1.7), scripted], played, 2)] == [True, True, True]
    assert [check.holds for check in checks([line(1.5), scripted], played, 2)] == [True, True, False]
    assert len(checks([line(1.5), scripted], played, 4)) == 2, "the target is that of two processes"
    played.compare("collect", "b")
    assert not checks([line(1.7), scripted], played, 2)[0].holds


def test_the_overhead_of_an_episode_is_checked() -> None:
    assert overhead_ms(line(0.5)) == pytest.approx(100.0), "100 episodes took 10 s, and 20 s in the workers"
    played = Played()
    played.compare("scripted", "a")
    assert [check.holds for check in checks([line(0.5)], played, 2)] == [True, False]


def test_the_table_has_a_row_for_each_line() -> None:
    result = {
        "lines": [line(1.7).to_json(), line(1.5).to_json()],
        "tasks": 3,
        "runner": "ray",
        "processes": 2,
        "repeats": 1,
    }
    assert table(result).row_count == 2


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--json", str(tmp_path / "f"), "--workers", "0"])
