"""Running the real commands in processes of their own, and reading what they leave behind.

Most of them are forks (:mod:`tests.pipeline.forks`); :func:`started` is for those that an interpreter is started for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.buffer import ReplayBuffer
from tests.pipeline import forks

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TIMES = {"seconds", "seconds_sample", "seconds_score", "seconds_update"}
"""What a logged line says about time."""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", **more}


def on_path(*folders: Path) -> dict[str, str]:
    """The environment in which commands are first looked for in ``folders``."""
    return environment(PATH=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


def started(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` in an interpreter of its own, in the repository's root; ``more`` is for its environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )


def retro(*arguments: str, stdin: str | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, in the repository's root, and check its exit code."""
    done = forks.run(["-m", "retro.cli", *arguments], environment(), stdin)
    assert done.returncode == code, f"{arguments}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def kill_itself(when: tuple[str, str], *arguments: str) -> None:
    """Run the command until it kills itself (see ``tests.pipeline.dying``); it must not come to its end."""
    done = forks.run(["-m", "tests.pipeline.dying", *when, *arguments], environment())
    assert done.returncode == -signal.SIGKILL, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"


@dataclass(frozen=True)
class Run:
    """A run folder and the config that makes it."""

    config: Path
    folder: Path

    def command(self, *more: str) -> tuple[str, ...]:
        return ("run", str(self.config), f"runs={self.folder.parent}", *more)

    def without(self, stage: str, runs: Path) -> Run:
        """A copy of this run as it was before ``stage``."""
        copy = Run(self.config, runs / self.folder.name)
        shutil.copytree(self.folder, copy.folder)
        shutil.rmtree(copy.folder / {"evaluate": "evaluation"}.get(stage, stage))
        lines = [line for line in read_metrics(copy.folder) if line["stage"] != stage]
        (copy.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return copy

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The stage's logged lines without what they say about time."""
        lines = [line for line in read_metrics(self.folder) if line["stage"] == stage]
        return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]

    def manifest(self, stage: str) -> dict[str, Any]:
        path = self.folder / {"evaluate": "evaluation"}.get(stage, stage) / "stage.json"
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def buffer(self) -> ReplayBuffer:
        return ReplayBuffer(f"sqlite:///{self.folder / 'buffer.sqlite'}", create=False)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
