"""The collection's benchmark at the smallest size: that both sides make the same calls. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.collection import checks, cpu_ms, main
from benchmarks.pipeline_timing import Lap, Line

SMALL = ["--episodes", "6", "--concurrency", "3", "--repeats", "2", "--delay-seconds", "0"]


def test_both_sides_make_the_same_calls(tmp_path: Path) -> None:
    file = tmp_path / "collection.json"
    assert main(["--json", str(file), *SMALL]) in (0, 1)  # the rates of so few calls say nothing
    result = json.loads(file.read_text())
    assert result["checks"][0]["holds"] and len(result["checks"]) == 3
    calls = result["sizes"]["calls"]
    assert calls > 6
    for laps in result["laps"].values():
        assert [lap["amount"] for lap in laps] == [calls, calls]
    assert result["command"].startswith("python benchmarks/collection.py --json")


def line(bare: tuple[float, float], ours: tuple[float, float]) -> Line:
    """Two laps a side of 100 calls, by (wall, CPU) seconds."""
    return Line("calls", "calls/s", (Lap(*bare, 100.0),) * 2, (Lap(*ours, 100.0),) * 2)


@pytest.mark.parametrize(
    ("ours", "holds"),
    [((10.0, 0.5), [True, True, True]), ((10.6, 0.5), [True, False, True]), ((10.0, 0.61), [True, True, False])],
)
def test_the_claims_are_checked(ours: tuple[float, float], holds: list[bool]) -> None:
    assert [check.holds for check in checks(line((10.0, 0.5), ours), 100)] == holds
    assert not checks(line((10.0, 0.5), ours), 101)[0].holds


def test_cpu_time_is_told_in_milliseconds_a_call() -> None:
    assert cpu_ms(line((10.0, 0.5), (10.0, 0.2))) == pytest.approx({"bare": 5.0, "ours": 2.0})


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--json", str(tmp_path / "f"), "--episodes", "0"])
