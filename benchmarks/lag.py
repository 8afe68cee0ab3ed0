"""How many more steps of PPO an hour ``ppo.lag: 1`` makes behind a slow actor: both settings in turn, in one run.

    python benchmarks/lag.py --json FILE [--latency 0.2] [--steps 4] [--repeats 3] [key.sub=value …]

The actor is a server in a process of its own, which takes ``--latency`` seconds to answer each call, and always says
``look``: what it plays does not matter for the speed. Buffer and supervised adapter are the quickstart's, at a reduced
size. A pass is a whole stage of ``--steps`` steps without a guard; its first step is not counted, since with a lag it
waits as without. With the default latency the retries take about as long as everything else. Exits with 1 unless the
lag makes at least 1.6 times as many steps an hour.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks.pipeline import machine
from benchmarks.pipeline_timing import Check, Lap, Phases, alternate, ratio_table, report
from benchmarks.slow_server import slow_server
from retro.cli.errors import one_line_errors
from retro.cli.logs import quieten
from retro.config import RunConfig, load_config
from retro.stage import run_stage
from retro.training.collect import STAGE as COLLECT
from retro.training.policy.stage import STAGE as POLICY
from retro.training.sft import STAGE as SFT

LEAST_RATIO = 1.6


def stage(config: RunConfig, prepared: Path, waited: list[float]) -> Phases:
    """The whole stage, once, in a run folder of its own: the time of its steps after the first one.

    Args:
        waited: gets the share of this time that went into waiting for retries.
    """
    began = time.process_time()
    with tempfile.TemporaryDirectory() as runs:
        config = config.model_copy(update={"runs": runs})
        shutil.copytree(prepared, config.run_dir)
        (config.run_dir / "metrics.jsonl").unlink()
        run_stage(POLICY, config)
        lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "seconds_update" in line][1:]
    wall = sum(line[f"seconds_{part}"] for line in steps for part in ("sample", "score", "update"))
    waited.append(sum(line["seconds_score"] for line in steps) / wall)
    return {"steps": Lap(wall, time.process_time() - began, len(steps) * 3600)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All figures, as plain JSON."""
    started = time.perf_counter()
    shared = ["device=cpu", "ppo.validation_contexts=0", f"ppo.steps={given.steps}", *given.overrides]
    with tempfile.TemporaryDirectory() as folder, slow_server(given.latency) as url:
        first = load_config(given.config, [*shared, f"runs={folder}"])
        for name in (COLLECT, SFT):
            run_stage(name, first)
        actor = f"actor={{kind: openai, model: slow, base_url: {url}, concurrency: 512, max_tokens: 12}}"
        waits, lags = (load_config(given.config, [*shared, actor, f"ppo.lag={lag}"]) for lag in (0, 1))
        for config in (waits, lags):
            stage(config, first.run_dir, [])
        waited: list[float] = []
        line = alternate(
            lambda _: stage(waits, first.run_dir, waited), lambda _: stage(lags, first.run_dir, []), given.repeats
        )("PPO", "steps/h", ["steps"])
    checks = [Check("times as many steps an hour with ppo.lag=1", line.ratio, LEAST_RATIO, at_least=True)]
    return {
        "lines": [line.to_json()],
        "checks": [check.to_json() for check in checks],
        "waits_without_lag": sum(waited) / len(waited),
        "latency": given.latency,
        "repeats": given.repeats,
        "machine": machine(),
        "seconds": round(time.perf_counter() - started, 1),
        "config": lags.model_dump(mode="json"),
    }


def table(result: dict[str, Any]) -> Table:
    """The figures for people to read."""
    title = f"{result['latency']} s a call, {result['waits_without_lag']:.0%} of a step in retries without a lag"
    return ratio_table(title, "lag 0", "lag 1", result["lines"], digits=0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that the actor's server takes for a call")
    parser.add_argument("--steps", type=int, default=4, help="of PPO in a pass, the first of which is not counted")
    parser.add_argument("--repeats", type=int, default=3, help="measured passes of each side, after a warm-up")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    given = parser.parse_args(arguments)
    if given.latency < 0 or given.steps < 2 or given.repeats < 1:
        parser.error("--latency must be 0 or more, --steps 2 or more, --repeats 1 or more")
    quieten()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    result = measure(given)
    written = sys.argv[1:] if arguments is None else list(arguments)
    result = {"command": shlex.join(["python", "benchmarks/lag.py", *written]), **result}
    return report(result, table(result), given.json)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
