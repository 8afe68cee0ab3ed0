"""Damaged and hostile files: every command that reads one ends well, or in one message with exit code 2.

Each kind of file (config, JSONL, export folder, trajectory, prompt folder) is damaged by seed in many ways
(benchmarks/hostile_mutations.py) and given to the command that reads it. Run by benchmarks/hostile.py.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from benchmarks.hostile_mutations import (
    FILES,
    TEXTS,
    YAML_TEXTS,
    damage_bytes,
    damage_file,
    damage_template,
    damage_tree,
)

ROOT = Path(__file__).parents[1]
SECONDS = 60.0
"""What a command may take. The slowest that are well take 3 s on an idle core."""
MOST_BYTES = 2**30
"""What a command's process may hold in memory, torch included."""
SHOWN = 20_000
"""The longest message, characters."""
MARKER = "hostile-marker"
"""What a file outside of what a command was given holds: it must never be shown."""


@dataclass(frozen=True, slots=True)
class Originals:
    """What is damaged: whole, and read without a complaint."""

    config: Path
    """Of a run of a minute at most."""
    jsonl: Path
    export: Path
    trajectory: Path
    prompts: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """How one command ended."""

    code: int
    hung: bool
    seconds: float
    bytes: int
    shown: str
    """Standard output and standard error."""

    @property
    def fault(self) -> str:
        """What is wrong with that; empty if nothing is."""
        if self.hung:
            return f"not over after {self.seconds:.0f} s"
        if "Traceback (most recent call last)" in self.shown:
            return "a traceback: " + self.shown.strip().splitlines()[-1][:200]
        if self.code not in (0, 2):
            return f"exit code {self.code}"
        if self.code == 2 and "retro: " not in self.shown and "Usage: " not in self.shown:
            return "exit code 2 without a message"
        if len(self.shown) > SHOWN:
            return f"a message of {len(self.shown):,} characters"
        if self.bytes > MOST_BYTES:
            return f"{self.bytes / 2**20:,.0f} MiB in memory"
        if MARKER in self.shown:
            return "shows a file that it was not given"
        return ""


@dataclass(frozen=True, slots=True)
class Case:
    """One damaged file, and what became of it."""

    kind: str
    number: int
    ended: Ended
    fault: str


class Worker:
    """benchmarks/hostile_worker.py, asked for one command after another."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, seconds: float) -> None:
        self._process = process
        self._folder = folder
        self._seconds = seconds

    def run(self, *arguments: str) -> Ended:
        """``retro ARGUMENTS``."""
        stdin, stdout = _pipes(self._process)
        asked = {"arguments": arguments, "folder": str(self._folder), "seconds": self._seconds}
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        said: dict[str, Any] = json.loads(stdout.readline())
        texts = [(self._folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr")]
        return Ended(**said, shown="".join(texts))


@contextmanager
def worker(folder: Path, environment: dict[str, str], seconds: float = SECONDS) -> Iterator[Worker]:
    """A worker whose commands run in the repository's root; one that takes more than ``seconds`` counts as hung."""
    command = [sys.executable, "-m", "benchmarks.hostile_worker"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Worker(process, folder, seconds)
        _pipes(process)[0].close()


def config_case(rng: random.Random, originals: Originals, folder: Path, retro: Worker) -> list[Ended]:
    """``retro run --dry-run`` with a damaged config."""
    data = originals.config.read_bytes()
    tree = yaml.safe_load(data)
    path = folder / "config.yaml"
    if rng.random() < 0.6:
        path.write_bytes(damage_tree(rng, tree, yaml.safe_dump, (*TEXTS, *YAML_TEXTS)))
    else:
        path.write_bytes(damage_bytes(rng, data))
    return [retro.run("run", str(path), f"runs={folder / 'runs'}", "--dry-run")]


def jsonl_case(rng: random.Random, originals: Originals, folder: Path, retro: Worker) -> list[Ended]:
    """``retro buffer import`` of a damaged file; what it takes is exported, and that imported."""
    lines = originals.jsonl.read_bytes().splitlines(keepends=True)
    place = rng.randrange(len(lines))
    if rng.random() < 0.7:
        lines[place] = damage_tree(rng, json.loads(lines[place]), _one_line) + b"\n"
    else:
        lines[place] = damage_bytes(rng, lines[place])
    path = folder / "trials.jsonl"
    path.write_bytes(b"".join(lines))
    skip = ("--on-error", "skip") if rng.random() < 0.3 else ()
    ended = [retro.run("buffer", "import", "jsonl", str(path), "--buffer", str(folder / "first"), *skip)]
    if ended[0].code == 0:
        again = str(folder / "again.jsonl")
        ended.append(_must(retro.run("buffer", "export", str(folder / "first"), again)))
        ended.append(_must(retro.run("buffer", "import", "jsonl", again, "--buffer", str(folder / "second"))))
    return ended


def export_case(rng: random.Random, originals: Originals, folder: Path, retro: Worker) -> list[Ended]:
    """``retro reflect`` with an export one of whose files is damaged."""
    export = folder / "export"
    shutil.copytree(originals.export, export)
    path = rng.choice(sorted(item for item in export.rglob("*") if item.is_file()))
    way = rng.random()
    if way < 0.2:
        outside = folder / "outside"
        outside.write_text(MARKER, encoding="utf-8")
        damage_file(rng, path, outside)
    elif way < 0.6 and path.suffix == ".json":
        path.write_bytes(damage_tree(rng, json.loads(path.read_bytes()), lambda tree: json.dumps(tree, indent=1)))
    elif way < 0.6 and path.suffix == ".jinja":
        path.write_text(damage_template(rng, path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
    return [retro.run("reflect", str(export), "--trajectory", str(originals.trajectory), "-n", "2")]


def trajectory_case(rng: random.Random, originals: Originals, folder: Path, retro: Worker) -> list[Ended]:
    """``retro reflect`` on a damaged trajectory."""
    data = originals.trajectory.read_bytes()
    path = folder / "trajectory.json"
    way = rng.random()
    if way < 0.1:
        path.write_bytes(data)
        outside = folder / "outside"
        outside.write_text(MARKER, encoding="utf-8")
        damage_file(rng, path, outside, FILES[:-1])  # a pipe is waited for: --trajectory <(command)
    elif way < 0.6:
        path.write_bytes(damage_tree(rng, json.loads(data), json.dumps))
    else:
        path.write_bytes(damage_bytes(rng, data))
    return [retro.run("reflect", str(originals.export), "--trajectory", str(path), "-n", "2")]


def prompts_case(rng: random.Random, originals: Originals, folder: Path, retro: Worker) -> list[Ended]:
    """``retro collect`` of one task with a damaged folder of prompts."""
    prompts = folder / "prompts"
    shutil.copytree(originals.prompts, prompts)
    (prompts / "prompts.yaml").write_text('format: line\nstop: ["\\n"]\n', encoding="utf-8")
    path = rng.choice(sorted(prompts.iterdir()))
    way = rng.random()
    if way < 0.15:
        outside = folder / "outside"
        outside.write_text(MARKER, encoding="utf-8")
        damage_file(rng, path, outside)
    elif path.suffix == ".yaml":
        tree = yaml.safe_load(path.read_bytes())
        path.write_bytes(damage_tree(rng, tree, yaml.safe_dump, (*TEXTS, *YAML_TEXTS)))
    elif way < 0.7:
        path.write_text(damage_template(rng, path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
    small = ["environment.tasks.train=1", "environment.tasks.validation=0", "environment.tasks.test=0"]
    small += ["collect.attempts=2", "collect.group=1", "collect.controls=0", f"environment.prompts={prompts}"]
    return [retro.run("collect", str(originals.config), f"runs={folder / 'runs'}", *small)]


Make = Callable[[random.Random, Originals, Path, Worker], list[Ended]]
KINDS: dict[str, Make] = {
    "config": config_case,
    "jsonl": jsonl_case,
    "export": export_case,
    "trajectory": trajectory_case,
    "prompts": prompts_case,
}


def run(
    originals: Originals,
    folder: Path,
    retro: Worker,
    seed: int,
    numbers: Sequence[int],
    kinds: Sequence[str],
) -> Iterator[Case]:
    """Every numbered case of every kind, as it ends.

    Args:
        folder: Where damaged files are written, and deleted again if all was well.
    """
    for kind in kinds:
        for number in numbers:
            own = folder / f"{kind}-{number}"
            own.mkdir()
            ended = KINDS[kind](random.Random(f"{seed} {kind} {number}"), originals, own, retro)
            worst = max(ended, key=lambda item: (bool(item.fault), item.bytes))
            yield Case(kind, number, worst, worst.fault)
            if not worst.fault:
                shutil.rmtree(own)


def _must(ended: Ended) -> Ended:
    """Of a command that has no reason to refuse."""
    return ended if ended.code == 0 or ended.fault else Ended(1, False, ended.seconds, ended.bytes, ended.shown)


def _one_line(tree: Any) -> str:
    return json.dumps(tree, ensure_ascii=False)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout
