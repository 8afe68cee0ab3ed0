"""What becomes of a collection at a server that fails in every way we know: 151 kinds of faults.

    python benchmarks/hostile_server.py [--kinds gzip-bomb key-escaped] [--batch 10] [--json FILE]

For each kind and fraction, a small collection of the household in another process; then the same command again at the
mended server. Exits with 1 unless each of them shows no traceback, takes no longer than its time-outs allow, stays
within 1 GiB of resident memory, has every episode in the buffer once, and leaves the key in no file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.hostile_server_work import TIMEOUT_SECONDS
from retro.artifacts import write_json
from retro.buffer.store import ReplayBuffer
from retro.types import to_json
from tests.servers.hostile_answers import FAULTS
from tests.servers.processes import ROOT, get, server_process

KEY = "sk-this/must+not-leak-4f1c"
MOST_MIB = 1024
_LONGEST_WAIT_SECONDS = 2.0
"""Of the faults that ask to wait and are waited for, and of the pauses between tries."""
_OTHER_SECONDS = 60.0
"""For all that does not wait for a time-out, on a busy machine."""
_HUNG_SECONDS = 600.0
_SHOWN_LETTERS = 10
_ESCAPES = re.compile(
    r"\\+(?:u00|x)([0-9a-f]{2})|%(?:25)?([0-9a-f]{2})|&#x([0-9a-f]{2});?|&#(\d{2,3});?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one collection."""

    kind: str
    fraction: float
    faults: int
    """Requests that met the fault."""
    stopped: bool
    """Whether an error ended it before the tasks did; else episodes may have failed, each with its error."""
    episodes: int
    seconds: float
    peak_mib: float
    problems: tuple[str, ...]


def run(
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    fractions: Sequence[float] = (0.2, 1.0),
    tasks: int = 6,
    batch: int = 1,
) -> list[Outcome]:
    """Collect at every kind of broken server.

    Args:
        seed: Of the tasks.
        kinds: Names of :data:`~tests.servers.hostile_answers.FAULTS`; None is all.
        fractions: Of the requests that meet the fault.
        tasks: How many are played.
        batch: Collections of one process, one after the other; its peak memory counts for each. More are faster.
    """
    pairs = [(kind, round(100 * fraction)) for kind in kinds or FAULTS for fraction in fractions]
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        works = [(kind, percent, str(top / f"{kind}-{percent}")) for kind, percent in pairs]
        with server_process("tests.servers.hostile_server", [], top / "server.log", "/faults") as url:
            for place in range(0, len(works), batch):
                ended = _played(url, works[place : place + batch], tasks, seed)
                faults = json.loads(get(f"{url}/faults"))
                for kind, percent, folder in works[place : place + batch]:
                    outcomes.append(_outcome(kind, percent, Path(folder), faults.get(f"{kind}/{percent}", 0), ended))
                    print(_line(outcomes[-1]), flush=True)
    return outcomes


def _played(url: str, works: Sequence[tuple[str, int, str]], tasks: int, seed: int) -> str:
    """Run the works in a process; why it ended before its end, or nothing."""
    command = [sys.executable, "-m", "benchmarks.hostile_server_work", "--url", url, "--works", json.dumps(works)]
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    limit = _HUNG_SECONDS * len(works)
    try:
        done = subprocess.run(
            [*command, "--tasks", str(tasks), "--seed", str(seed)],
            cwd=ROOT,
            env=environment,
            timeout=limit,
            capture_output=True,
            check=False,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return f"hung for {limit:.0f} s"
    return "" if done.returncode == 0 else f"ended by {done.returncode}: {done.stderr[-500:]}"


def _outcome(kind: str, percent: int, folder: Path, faults: int, ended: str) -> Outcome:
    if not (folder / "outcome.json").is_file():
        return Outcome(kind, percent / 100, faults, True, 0, 0.0, 0.0, (ended or "no outcome",))
    told = json.loads((folder / "outcome.json").read_text())
    allowed = _OTHER_SECONDS + faults * (TIMEOUT_SECONDS + _LONGEST_WAIT_SECONDS)
    shown = (folder / "stderr.txt").read_text()
    problems = [ended] if ended else []
    if (
        "Traceback" in shown or len(shown.splitlines()) > 4
    ):  # two collections, a reflection, and where to start a server
        problems.append(f"shows {shown[-300:]!r}")
    if told["seconds"] > allowed:
        problems.append(f"{told['seconds']:.0f} s, more than {allowed:.0f} s")
    if told["peak_mib"] > MOST_MIB:
        problems.append(f"{told['peak_mib']:.0f} MiB, more than {MOST_MIB} MiB")
    if not told["resumed"]:
        problems.append("cannot be resumed")
    with ReplayBuffer(f"sqlite:///{folder / 'buffer.sqlite'}") as buffer:
        episodes = [json.dumps(to_json(episode)) for episode in buffer.episodes()]
        ids = sorted(episode.id for episode in buffer.episodes())
    recorded = sorted((folder / "recorded.txt").read_text().split())
    collected = json.loads((folder / "collect.json").read_text())
    if not ids == recorded == sorted(collected["episodes"]) or collected["errors"]:
        problems.append(
            f"{len(ids)} episodes in the buffer, {len(recorded)} recorded, {len(collected['episodes'])} played"
        )
    texts = {file.name: file.read_bytes().decode("latin-1") for file in folder.iterdir()}
    problems += [
        f"the key is in {name}" for name, text in {**texts, "an episode": " ".join(episodes)}.items() if leaks(text)
    ]
    return Outcome(
        kind, percent / 100, faults, told["stopped"], len(ids), told["seconds"], told["peak_mib"], tuple(problems)
    )


def leaks(text: str) -> bool:
    """Whether a reader finds the key's first letters in ``text``, whatever stands between them and however escaped."""
    for _ in range(2):  # escaped twice
        text = _ESCAPES.sub(
            lambda found: chr(int(found[4]) if found[4] else int(found[1] or found[2] or found[3], 16)), text
        )
    return _letters(KEY)[:_SHOWN_LETTERS] in _letters(text)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9/+-]", "", re.sub(r"\\+[nrt]", "", text.lower()))


def _line(outcome: Outcome) -> str:
    end = "stopped" if outcome.stopped else "played"
    verdict = "; ".join(outcome.problems) or "ok"
    return (
        f"{outcome.kind:26} {outcome.fraction:4.0%} {outcome.faults:5} faults  {end:7} {outcome.episodes:3} episodes "
        f"{outcome.seconds:6.1f} s {outcome.peak_mib:5.0f} MiB  {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=sorted(FAULTS))
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.2, 1.0])
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--batch", type=int, default=1, help="collections of one process")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    outcomes = run(arguments.seed, arguments.kinds, arguments.fractions, arguments.tasks, arguments.batch)
    failed = [outcome for outcome in outcomes if outcome.problems]
    peak, slowest = max(outcome.peak_mib for outcome in outcomes), max(outcome.seconds for outcome in outcomes)
    print(f"{len(outcomes)} collections, {len(failed)} with problems; at most {peak:.0f} MiB and {slowest:.1f} s")
    if arguments.json:
        write_json(arguments.json, [asdict(outcome) for outcome in outcomes])
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
