"""The local actor on long conversations: this checkout against another commit, and against itself with more of them.

    python benchmarks/actor.py --json FILE [--baseline REVISION_OR_FOLDER] [--conversations 128] [--turns 48] …

Both sides play the same conversations with the same random model, in turn, each in a process of its own. ``--more 512``
plays so many conversations on this side, too. The CPU time of a turn is fitted by a line over its number. The command
exits with 1 if the sides' answers differ; the targets of speed are told, and change nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from benchmarks.pipeline import machine
from benchmarks.pipeline_timing import Check, Lap, Line, Phases, alternate
from benchmarks.ppo_models import llama_config, word_tokenizer
from benchmarks.ppo_processes import Measured
from retro.artifacts import write_json
from retro.cli.errors import one_line_errors
from retro.config import ConfigError

HERE = Path(__file__).resolve().parent
BASELINE = "ddbf412"
"""The last commit whose keys and values lay in one table that was copied whenever it grew."""
VOCABULARY = 510
LEAST_SPEEDUP, LEAST_RATE_OF_MORE, LINEAR = 2.5, 0.85, 0.9
WIDTH = 100


def checkout(revision: str, folder: Path) -> Path:
    """The code of ``revision``, a commit of this repository or a folder.

    Raises:
        ConfigError: if it is neither.
    """
    if Path(revision).is_dir():
        return Path(revision).resolve()
    packed = subprocess.run(["git", "archive", revision, "retro"], cwd=HERE.parent, capture_output=True, check=False)
    if packed.returncode:
        raise ConfigError(f"--baseline {revision}: neither a folder nor a commit: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def write_model(given: argparse.Namespace, folder: Path) -> None:
    """A random Llama with a word-level tokenizer."""
    shape = {
        "hidden_size": given.width,
        "intermediate_size": given.width * 11 // 4,
        "num_hidden_layers": given.layers,
        "num_attention_heads": given.heads,
        "num_key_value_heads": given.key_value_heads,
    }
    torch.manual_seed(0)
    context = 2 * given.opening + given.turns * given.turn_tokens + 64
    LlamaForCausalLM(llama_config(shape, VOCABULARY, context)).save_pretrained(folder)
    word_tokenizer(VOCABULARY).save_pretrained(folder)


class Side:
    """A commit, playing in a process of its own when it is asked."""

    def __init__(self, name: str, code: Path, work: dict[str, Any], folder: Path, stack: ExitStack) -> None:
        self.conversations = int(work["conversations"])
        path = folder / f"{name}.json"
        path.write_text(json.dumps(work), encoding="utf-8")
        command = [sys.executable, "-P", str(HERE / "actor_worker.py"), str(path)]
        self._process = stack.enter_context(Measured(command, {"PYTHONPATH": str(code)}, folder / f"{name}.log"))
        self.plays: list[dict[str, Any]] = []

    def play(self, number: int) -> Phases:
        self.plays.append(self._process.ask("play", number))
        last = self.plays[-1]
        return {"play": Lap(last["wall_seconds"], last["cpu_seconds"], self.conversations)}


def linear_fit(seconds: Sequence[float]) -> dict[str, float]:
    """Of the time of each turn after the first: a line by least squares, and which part of the variance it explains."""
    turns, found = np.arange(1, len(seconds)), np.array(seconds[1:])
    slope, start = np.polyfit(turns, found, 1)
    left = found - (start + slope * turns)
    explained = 1 - left.var() / found.var() if found.var() else 1.0
    return {"start_seconds": float(start), "seconds_a_turn": float(slope), "explained": float(explained)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All figures, as plain JSON."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_model(given, folder / "model")
        work = {
            "folder": str(folder / "model"),
            "vocabulary": VOCABULARY,
            "temperature": given.temperature,
            "seed": 0,
            **{key: getattr(given, key) for key in ("conversations", "turns", "turn_tokens", "opening", "cache_gib")},
        }
        ours = Side("ours", HERE.parent, work, folder, stack)
        base = Side("baseline", checkout(given.baseline, folder / "baseline"), work, folder, stack)
        line = alternate(base.play, ours.play, given.repeats)("episodes", "episodes/s", ["play"])
        sides = {"baseline": base.plays, "ours": ours.plays}
        again = None
        if given.more:
            more = Side("more", HERE.parent, {**work, "conversations": given.more}, folder, stack)
            again = alternate(ours.play, more.play, given.repeats)("more", "episodes/s", ["play"])
            sides["more"] = more.plays
    fits = {
        side: linear_fit(np.median([play["turn_seconds"] for play in plays], axis=0).tolist())
        for side, plays in sides.items()
    }
    return {
        "sizes": {**vars(given), "json": str(given.json)},
        "line": line.to_json(),
        "more": None if again is None else again.to_json(),
        "fits": fits,
        "plays": sides,
        "checks": [equal_answers(base.plays[0], ours.plays[0]).to_json()],
        "targets": [target.to_json() for target in targets(line, again, fits)],
        "machine": machine(),
        "load_average": os.getloadavg(),
    }


def equal_answers(baseline: dict[str, Any], ours: dict[str, Any]) -> Check:
    """Whether both sides played the same; a draw that lies within the rounding of a sum may differ."""
    pairs = list(zip(baseline["digests"], ours["digests"], strict=True))
    return Check("of the conversations have equal answers", sum(a == b for a, b in pairs) / len(pairs), 0.98, True)


def targets(line: Line, more: Line | None, fits: dict[str, dict[str, float]]) -> list[Check]:
    """What is wanted of the speed, by CPU time."""
    found = [
        Check("times the baseline's episodes a CPU second", line.cpu_ratio, LEAST_SPEEDUP, True),
        Check("of the variance of a turn's time is explained by its number", fits["ours"]["explained"], LINEAR, True),
    ]
    if more is not None:
        found.append(Check("of the rate with more conversations", more.cpu_ratio, LEAST_RATE_OF_MORE, True))
        found.append(Check("of a turn's variance among them likewise", fits["more"]["explained"], LINEAR, True))
    return found


def table(result: dict[str, Any]) -> Table:
    """The figures for people to read."""
    sizes = result["sizes"]
    drawn = Table(
        title=f"{sizes['layers']} × {sizes['width']}, {sizes['key_value_heads']} of {sizes['heads']} heads for keys; "
        f"{sizes['turns']} turns of {sizes['turn_tokens']} tokens"
    )
    for name in ("", "conversations", "episodes/s", "a CPU second", "turn 2, CPU s", "last turn, CPU s", "peak, GiB"):
        drawn.add_column(name, justify="left" if not name else "right")
    for side, plays in result["plays"].items():
        count = len(plays[0]["digests"])
        wall, cpu = (np.median([play[clock] for play in plays]) for clock in ("wall_seconds", "cpu_seconds"))
        turns = np.median([play["turn_seconds"] for play in plays], axis=0)
        peak = max(play["peak_bytes"] for play in plays) / 2**30
        figures = (f"{count / wall:.2f}", f"{count / cpu:.2f}", f"{turns[1]:.2f}", f"{turns[-1]:.2f}", f"{peak:.2f}")
        drawn.add_row(side, str(count), *figures)
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--baseline", default=BASELINE, help="a commit of this repository, or a folder with its code")
    parser.add_argument("--conversations", type=int, default=128)
    parser.add_argument("--more", type=int, default=0, help="also play so many conversations on this side")
    parser.add_argument("--turns", type=int, default=48)
    parser.add_argument("--turn-tokens", type=int, default=22, help="answer and observation together, 10 or more")
    parser.add_argument("--opening", type=int, default=150, help="tokens of the first prompt, on average")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--key-value-heads", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--cache-gib", type=float, default=None, help="of this side; by default half of what is free")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.turns < 3 or given.turn_tokens < 10 or min(given.conversations, given.repeats, given.opening) < 1:
        parser.error("--turns must be 3 or more, --turn-tokens 10 or more, the other counts 1 or more")
    result = measure(given)
    written = sys.argv[1:] if arguments is None else list(arguments)
    result = {"command": shlex.join(["python", "benchmarks/actor.py", *written]), **result}
    console = Console(width=max(WIDTH, Console().width))
    console.print(table(result))
    for words, found in ((("ok  ", "FAIL"), result["checks"]), (("met   ", "MISSED"), result["targets"])):
        for check in found:
            verdict = f"{words[not check['holds']]} {check['figure']:.3f} (at least {check['limit']:g})"
            console.print(f"{verdict}  {check['name']}", highlight=False, soft_wrap=True)
    write_json(given.json, result)
    console.print(str(given.json), highlight=False, soft_wrap=True)
    return 0 if all(check["holds"] for check in result["checks"]) else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
