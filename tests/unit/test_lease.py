"""The lease of a run's folder: who gets it, what the others are told, and what a dead holder leaves."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from retro.cli.pipeline import run_pipeline
from retro.lease import EXPIRES_SECONDS, FileLease, LeaseHeldError, LeaseLostError, kept
from tests.builders import run_config

NOON = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lease(folder: Path, clock: Clock, machine: str = "here") -> FileLease:
    return FileLease(folder / "lease.json", "run runs/mine", clock, machine)


def killed(holder: FileLease) -> None:
    """What ``kill -9`` leaves: the file without its lock."""
    os.close(holder._descriptor)


def test_a_run_that_was_started_twice_is_refused_with_the_name_of_the_first(tmp_path: Path, clock: Clock) -> None:
    first = lease(tmp_path, clock)
    clock.now += 4
    with pytest.raises(LeaseHeldError) as refused:
        lease(tmp_path, clock)
    assert str(refused.value) == (
        f"run runs/mine: process {os.getpid()} on {os.uname().nodename} (since 2026-01-01 12:00:00 UTC, last sign of "
        "life 4 s ago) works on it: wait until that has ended, or stop it; or give this run another name: name=…"
    )
    first.release()
    assert list(tmp_path.iterdir()) == []
    lease(tmp_path, clock).release()


def test_a_killed_run_starts_again_at_once_on_its_machine_and_later_on_another(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    killed(lease(tmp_path, clock))
    second = lease(tmp_path, clock)
    assert "ended without releasing it; this process takes it over" in caplog.text
    clock.now += 200
    second.beat()
    killed(second)
    clock.now += EXPIRES_SECONDS - 1
    with pytest.raises(
        LeaseHeldError, match=r"last sign of life 89 s ago.*if it was killed, its lease ends 90 s after"
    ):
        lease(tmp_path, clock, "there")
    clock.now += 1
    lease(tmp_path, clock, "there").release()


def test_without_locks_the_last_sign_of_life_decides(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr("retro.lease.fcntl.flock", no_locks)
    killed(lease(tmp_path, clock))
    with pytest.raises(LeaseHeldError):
        lease(tmp_path, clock)
    clock.now += EXPIRES_SECONDS
    lease(tmp_path, clock).release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_file_names_nobody_and_blocks_nobody(tmp_path: Path, clock: Clock, content: bytes) -> None:
    holder = lease(tmp_path, clock)
    (tmp_path / "lease.json").write_bytes(content)
    with pytest.raises(LeaseHeldError, match="run runs/mine: another process works on it"):
        lease(tmp_path, clock)
    killed(holder)
    lease(tmp_path, clock, "there").release()


def test_a_holder_that_lost_its_lease_stops_and_leaves_the_other_alone(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(LeaseLostError, match=r"lease\.json was taken over by process 7 on there"):  # noqa: SIM117
        with kept(lease(tmp_path, clock), seconds=0.001):
            (tmp_path / "lease.json").write_text(json.dumps({"pid": 7, "host": "there"}), encoding="utf-8")
            while True:  # the beat interrupts it
                time.sleep(0.01)
    assert (tmp_path / "lease.json").exists()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script of a shell leaves it to what it puts behind `&`
    try:
        with pytest.raises(LeaseLostError), kept(FileLease(tmp_path / "ignored.json", "it", clock), seconds=0.001):
            (tmp_path / "ignored.json").unlink()
            while True:
                time.sleep(0.01)
    finally:
        assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
    with pytest.raises(KeyboardInterrupt), kept(FileLease(tmp_path / "other.json", "it", clock)):
        raise KeyboardInterrupt


def test_the_command_holds_the_lease_and_writes_nothing_without_it(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    config.run_dir.mkdir(parents=True)
    holder = FileLease(config.run_dir / "lease.json", "it")
    with pytest.raises(LeaseHeldError, match=f"run {config.run_dir}: process {os.getpid()} on"):
        run_pipeline(config, [], "config.yaml")
    assert [path.name for path in config.run_dir.iterdir()] == ["lease.json"]
    holder.release()
