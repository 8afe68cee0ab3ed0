"""The runners' benchmark: what it compares and checks. Nothing is played, since that would start processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pipeline_timing import Lap, Line
from benchmarks.runners import Played, checks, main, table


def line(ratio: float) -> Line:
    return Line("collect", "episodes/s", (Lap(10.0, 10.0, 100.0),), (Lap(10.0 / ratio, 1.0, 100.0),))


def test_the_episodes_and_the_ratio_are_checked() -> None:
    played = Played()
    for episodes in ("a", "a"):
        played.compare("collect", episodes)
    assert [check.holds for check in checks([line(1.7)], played, 2)] == [True, True]
    assert [check.holds for check in checks([line(1.5)], played, 2)] == [True, False]
    assert len(checks([line(1.5)], played, 4)) == 1, "the target is that of two processes"
    played.compare("collect", "b")
    assert not checks([line(1.7)], played, 2)[0].holds


def test_the_table_has_a_row_for_each_line() -> None:
    result = {"lines": [line(1.7).to_json(), line(1.5).to_json()], "tasks": 3, "processes": 2, "repeats": 1}
    assert table(result).row_count == 2


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--json", str(tmp_path / "f"), "--workers", "0"])
