"""What the world and the two small models allow, before anything is trained on them.

    python benchmarks/ceilings.py [--tasks 500] [--json FILE] [key.sub=value …]

Plays oracle, vague, retry, retry-sampled and reflexion (the untrained retrospective model) on held-out tasks, prints
success by attempt with intervals, and checks what learning needs: failures that a good reflection repairs, a vague one
that does not help, a control that can improve, and room between the untrained model and the oracle. Exits with 1 if a
check fails. Resumable: what was played is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from retro.cli.errors import one_line_errors
from retro.config import load_config
from retro.evaluation.report import Paths
from retro.evaluation.results import Results
from retro.evaluation.roles import Role
from retro.evaluation.stage import evaluate_into
from retro.evaluation.statistics import wilson
from retro.evaluation.table import results_table

ARMS = ("retry", "retry-sampled", "vague", "reflexion", "oracle")


def next_attempt(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Success at attempt 2 of the tasks that failed attempt 1: what one reflection repairs."""
    failed = [o for o in outcomes.values() if o["solved_at"] != 0]
    solved = sum(o["solved_at"] == 1 for o in failed)
    share = solved / len(failed) if failed else float("nan")
    return {
        "failed": len(failed),
        "solved": solved,
        "share": share,
        "ci95": wilson(solved, len(failed)) if failed else None,
    }


def checks(results: Results) -> list[dict[str, Any]]:
    """What must hold before training is worth it, each with the figure that decides."""
    names = {arm["role"]: name for name, arm in results["arms"].items()}
    curve = {role: results["arms"][name]["success_by_trial"] for role, name in names.items()}
    control, untrained, oracle = (curve[role][-1] for role in (Role.CONTROL, Role.UNTRAINED, Role.CEILING))
    told = next(iter(results["outcomes"][names[Role.CEILING]].values()))
    repaired = next_attempt(told)["share"]
    way = (untrained - control) / (oracle - control) if oracle > control else float("nan")
    vague = curve[Role.VAGUE][-1] - curve[Role.RETRY][-1]
    figures = [
        ("an oracle reflection repairs ≥ .9 of the failures at the next attempt", repaired, repaired >= 0.9),
        ("a vague reflection is within 5 points of retry", vague, abs(vague) <= 0.05),
        ("retry-sampled gains ≥ 10 points from the first to the last attempt", control - curve[Role.CONTROL][0],
         control - curve[Role.CONTROL][0] >= 0.10),
        ("reflexion is ≥ 10 points above retry-sampled", untrained - control, untrained - control >= 0.10),
        ("reflexion is ≤ .6 of the way from retry-sampled to the oracle", way, way <= 0.6),
    ]  # fmt: skip
    return [{"check": text, "figure": round(figure, 4), "holds": bool(holds)} for text, figure, holds in figures]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--tasks", type=int, default=500, help="held-out tasks")
    parser.add_argument(
        "--offset", type=int, default=10_000, help="test tasks skipped: no other measurement sees these"
    )
    parser.add_argument("--json", type=Path, help="where the figures go; by default beside the evaluation")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    fixed = [
        "name=ceilings",
        f"environment.tasks.test={arguments.tasks}",
        f"environment.tasks.offset={arguments.offset}",
        f"evaluate.arms=[{', '.join(ARMS)}]",
    ]
    config = load_config(arguments.config, [*fixed, *arguments.overrides])
    results = evaluate_into(config, Paths(config.run_dir, config.run_dir / "evaluation"))
    found = checks(results)
    console = Console()
    console.print(results_table(results))
    for check in found:
        console.print(
            f"{'ok  ' if check['holds'] else 'FAIL'} {check['figure']:.3f}  {check['check']}", highlight=False
        )
    target = arguments.json or config.run_dir / "ceilings.json"
    repaired = {name: next_attempt(next(iter(by_seed.values()))) for name, by_seed in results["outcomes"].items()}
    summary = {"checks": found, "next_attempt": repaired, "arms": results["arms"]}
    target.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.print(f"{target}", highlight=False, soft_wrap=True)
    return 0 if all(check["holds"] for check in found) else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
