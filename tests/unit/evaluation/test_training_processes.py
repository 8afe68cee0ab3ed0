"""Parts of a benchmark in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import training_processes
from benchmarks.training_processes import Processes

SCRIPT = """
import sys, time
part = sys.argv[sys.argv.index("--only") + 1]
print("began", *sys.argv[1:], flush=True)
while part == "slow" and not {done!r}.exists():
    time.sleep(0.05)
sys.exit(3 if part == "bad:1" else 0)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "script.py"
    file.write_text("from pathlib import PosixPath\n" + SCRIPT.format(done=tmp_path / "done"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(file)])
    return file


def test_every_part_runs_with_its_log_and_a_failed_one_is_told_last(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1 of 2 parts failed; the same command continues"):
        Processes(tmp_path / "runs", 2, ["--tasks", "5"]).run(["bad:1", "good:2"])
    said = capsys.readouterr().out
    assert "good:2: done" in said and "bad:1: failed (3), see" in said
    assert (tmp_path / "runs" / "good-2.log").read_text() == "began --tasks 5 --only good:2\n"


def test_a_line_says_how_far_a_part_is(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_processes, "SECONDS", 0.05)
    said: list[str] = []

    def told(text: str, flush: bool) -> None:
        said.append(text)
        if "began" in text:
            (tmp_path / "done").touch()

    monkeypatch.setattr(training_processes, "print", told, raising=False)
    Processes(tmp_path / "runs", 1, []).run(["slow"])
    assert any(line.endswith("slow: began --only slow") for line in said)
    assert said[-1].endswith("slow: done")
