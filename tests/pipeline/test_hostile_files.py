"""A few of the cases of benchmarks/hostile.py, on a run of random models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hostile import quiet
from benchmarks.hostile_files import KINDS, Ended, Originals, Worker, run, worker
from tests.pipeline.running import ROOT, Run
from tests.servers.processes import PATIENCE_SECONDS

CASES = range(4)


@pytest.fixture(scope="module")
def originals(whole_run: Run, trials: Path, tmp_path_factory: pytest.TempPathFactory) -> Originals:
    folder = tmp_path_factory.mktemp("originals")
    step = {"action": "look", "observation": "You see a desk 1.", "reward": 0.0}
    trajectory = folder / "trajectory.json"
    trajectory.write_text(json.dumps({"opening": "A room.", "steps": [step] * 3, "return": 0.0}), encoding="utf-8")
    export, prompts = whole_run.folder / "export", ROOT / "retro" / "prompts" / "household"
    return Originals(whole_run.folder / "config.yaml", trials, export, trajectory, prompts)


@pytest.fixture(scope="module")
def retro(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with worker(tmp_path_factory.mktemp("worker"), quiet(), PATIENCE_SECONDS) as retro:
        yield retro


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_worse_than_a_message_comes_of_damaged_files(
    kind: str, originals: Originals, retro: Worker, tmp_path: Path
) -> None:
    cases = list(run(originals, tmp_path, retro, seed=0, numbers=CASES, kinds=[kind]))
    assert [case.number for case in cases] == list(CASES)
    assert not [(case.number, case.fault, case.ended.shown[-500:]) for case in cases if case.fault]


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (Ended(2, False, 1.0, 2**28, "retro: config x.yaml: not YAML"), ""),
        (Ended(0, False, 1.0, 2**28, ""), ""),
        (Ended(1, False, 1.0, 2**28, "retro: no"), "exit code 1"),
        (Ended(2, False, 1.0, 2**28, ""), "without a message"),
        (Ended(2, False, 1.0, 2**28, "retro: \nTraceback (most recent call last):\nKeyError: 'x'"), "KeyError"),
        (Ended(-9, True, 60.0, 2**28, ""), "not over"),
        (Ended(0, False, 1.0, 2**31, ""), "2,048 MiB"),
        (Ended(2, False, 1.0, 2**28, "retro: " + "x" * 30_000), "30,007 characters"),
        (Ended(2, False, 1.0, 2**28, "retro: not JSON: hostile-marker"), "shows a file"),
    ],
)
def test_what_counts_as_a_fault(ended: Ended, fault: str) -> None:
    assert fault in ended.fault and bool(ended.fault) == bool(fault)
