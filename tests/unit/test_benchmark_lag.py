"""The benchmark of ``ppo.lag``: its slow server, and how it draws what it found."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from benchmarks.lag import main, table
from benchmarks.pipeline_timing import Lap, Line
from benchmarks.slow_server import ANSWER, slow_server


def test_the_slow_server_answers_until_it_is_left() -> None:
    with slow_server(0.0) as url:
        request = urllib.request.Request(f"{url}/chat/completions", b"{}", {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response) == ANSWER
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(request, timeout=60)


def test_the_table_has_a_row_for_each_line() -> None:
    laps = (Lap(10.0, 10.0, 3600.0),), (Lap(5.0, 1.0, 3600.0),)
    line = Line("PPO", "steps/h", *laps)
    result = {"lines": [line.to_json()], "latency": 0.2, "waits_without_lag": 0.5, "repeats": 1}
    assert table(result).row_count == 1


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--json", str(tmp_path / "f"), "--steps", "1"])
