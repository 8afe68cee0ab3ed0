"""Broken and hostile input: damaged files and a faulty server, and that nothing worse than a message comes of them.

python benchmarks/hostile.py --json runs/hostile.json                          # 300 of each kind of file: an hour
python benchmarks/hostile.py --cases 20 --kinds config trajectory --seed 1     # a look
python benchmarks/hostile.py --kinds export --only 17 --keep runs/hostile      # one case again, its files kept

Exits with 1 if a command ended in a traceback, in silence, with another exit code than 0 or 2, after more than 60 s,
with more than 1 GiB in memory, or showed a file that it was not given; or if an exported buffer did not import again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from benchmarks.hostile_files import KINDS, ROOT, Case, Originals, run, worker
from retro.artifacts import write_json

CASES = 300
REDUCED = (
    *("environment.tasks.train=16", "environment.tasks.validation=8", "environment.tasks.test=1"),
    *("collect.attempts=2", "collect.group=2", "sft.threshold=-1", "sft.max_steps=4"),
    *("reward.max_steps=4", "reward.eval_every=2", "ppo.steps=1", "ppo.contexts=4", "ppo.group=2", "ppo.epochs=1"),
    "ppo.validation_contexts=0",
)
"""The quickstart in half a minute, for an export and a buffer to damage."""


def originals(folder: Path, environment: dict[str, str]) -> Originals:
    """What is damaged, of a reduced quickstart run in ``folder``."""
    config = ROOT / "configs" / "quickstart.yaml"
    retro = [sys.executable, "-m", "retro.cli"]
    made = folder / "quickstart"
    for arguments in (
        ["run", str(config), f"runs={folder}", "name=quickstart", "--until", "export", *REDUCED],
        ["buffer", "export", str(made), str(folder / "episodes.jsonl")],
    ):
        subprocess.run([*retro, *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    failed = next(episode for episode in map(json.loads, lines) if not episode["success"])
    steps = [{key: step[key] for key in ("action", "observation", "reward")} for step in failed["trajectory"]["steps"]]
    trajectory = {"opening": failed["trajectory"]["opening"], "steps": steps, "return": failed["return"], "memory": []}
    (folder / "trajectory.json").write_text(json.dumps(trajectory, indent=1), encoding="utf-8")
    roots = [line for line in lines if json.loads(line)["parent"] is None]
    (folder / "trials.jsonl").write_text("".join(f"{line}\n" for line in roots[:10]), encoding="utf-8")
    return Originals(
        made / "config.yaml",
        folder / "trials.jsonl",
        made / "export",
        folder / "trajectory.json",
        ROOT / "retro" / "prompts" / "household",
    )


def quiet() -> dict[str, str]:
    """The environment of commands: one thread, and no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def report(cases: Sequence[Case]) -> str:
    """A line a kind."""
    lines = []
    for kind in dict.fromkeys(case.kind for case in cases):
        own = [case for case in cases if case.kind == kind]
        codes, faults = Counter(case.ended.code for case in own), sum(bool(case.fault) for case in own)
        slowest, most = max(case.ended.seconds for case in own), max(case.ended.bytes for case in own) / 2**20
        lines.append(
            f"{kind}: {len(own)} cases, {codes[0]} read, {codes[2]} refused, {faults} at fault; "
            f"slowest {slowest:.1f} s, most memory {most:,.0f} MiB"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--cases", type=int, default=CASES, help="of each kind")
    parser.add_argument("--only", type=int, help="one case's number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder that keeps the files of cases at fault")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    numbers = range(arguments.cases) if arguments.only is None else [arguments.only]
    began, environment, cases = time.monotonic(), quiet(), []
    if arguments.keep:
        arguments.keep.mkdir(parents=True)
    with nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = originals(folder, environment)
        with worker(folder, environment) as retro:
            for case in run(given, folder, retro, arguments.seed, numbers, arguments.kinds):
                cases.append(case)
                if case.fault:
                    print(f"{case.kind} {case.number}: {case.fault}", flush=True)
    print(report(cases))
    print(f"seed {arguments.seed}, {time.monotonic() - began:.0f} s")
    if arguments.json:
        rows = [
            {"kind": case.kind, "number": case.number, "code": case.ended.code, "fault": case.fault}
            | {"seconds": round(case.ended.seconds, 2), "bytes": case.ended.bytes}
            for case in cases
        ]
        write_json(arguments.json, {"seed": arguments.seed, "cases": rows})
    sys.exit(any(case.fault for case in cases))


if __name__ == "__main__":
    main()
