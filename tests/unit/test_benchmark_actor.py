"""The actor's benchmark at the smallest size: that both sides play the same. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.actor import checkout, equal_answers, linear_fit, main
from retro.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--conversations", "3", "--turns", "3", "--layers", "1", "--width", "32", "--opening", "20", "--more", "5"]


@pytest.mark.slow
def test_both_sides_play_the_same(tmp_path: Path) -> None:
    file = tmp_path / "actor.json"
    assert main(["--json", str(file), "--baseline", str(ROOT), "--cache-gib", "0.0001", *SMALL]) == 0
    result = json.loads(file.read_text())
    assert result["checks"][0]["figure"] == 1
    assert [len(plays[0]["digests"]) for plays in result["plays"].values()] == [3, 3, 5]
    assert len(set(result["plays"]["more"][0]["digests"])) == 5
    assert result["plays"]["more"][0]["digests"][:3] == result["plays"]["ours"][0]["digests"]


def test_a_line_is_found_and_what_is_no_line_is_not() -> None:
    assert linear_fit([9.0, 3.0, 5.0, 7.0]) == pytest.approx(
        {"start_seconds": 1, "seconds_a_turn": 2, "explained": 1}, abs=1e-9
    )
    assert linear_fit([0.0, 1.0, -1.0, 1.0, -1.0])["explained"] < 0.5


def test_other_answers_are_seen() -> None:
    assert equal_answers({"digests": ["a", "b"]}, {"digests": ["a", "b"]}).holds
    assert not equal_answers({"digests": ["a", "b"]}, {"digests": ["a", "c"]}).holds


def test_a_baseline_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-revision"):
        checkout("no-such-revision", tmp_path)
