"""Does the retrospective model learn? Several training seeds, two PPO rewards, every arm, tasks nobody has seen.

    nohup python benchmarks/learning.py > learning.log &        # all seeds, two worker processes; resumes when killed
    python benchmarks/learning.py --summarise                   # table, plot and checks of the seeds that are done

Each seed is two runs: ``seed-S-env`` (PPO on the true ΔG) and ``seed-S-rm`` (PPO on the reward model), which share one
collection, one SFT and one reward model. All arms of both are evaluated on the same tasks in ``seed-S-env``. Written to
``runs/learning``: ``learning.json``, ``learning.md``, ``learning.png``, and ``outcomes.jsonl``, a line for each arm,
seed and task.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from retro.artifacts import write_atomically, write_json
from retro.cli.errors import one_line_errors
from retro.config import ArmSection, RunConfig, load_config
from retro.envs import make_taskset
from retro.evaluation.figures import save_png, success_by_trial
from retro.evaluation.presets import best_of
from retro.evaluation.report import read_results
from retro.evaluation.results import (
    SCOPE,
    ArmResult,
    Comparison,
    Draws,
    Outcomes,
    Results,
    compare,
    outcome_to_json,
    outcomes_from_json,
    summarise,
)
from retro.evaluation.roles import Description, Role, one_of
from retro.evaluation.seeds import MOST_SEEDS, compare_methods
from retro.evaluation.table import best_learned_arm, results_table
from retro.stage import read_manifest
from retro.types import Split

SHARED = ("collect", "sft", "reward")
"""Stages that both runs of a seed share."""
CONTROLS = ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion", "sft")
"""Evaluated before the policies of both rewards, each with its Best-of-N; the oracle comes last."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``a`` against ``b`` at the last attempt."""

    a: str
    b: str
    p_below: float | None = None
    """``a`` is above ``b`` with a two-sided p below this."""
    low_at_least: float | None = None
    """The interval of the difference does not reach below this."""
    difference_at_least: float | None = None

    def holds(self, comparison: Comparison) -> bool:
        if self.p_below is not None:
            return comparison["difference"] > 0 and comparison["p_value"] < self.p_below
        if self.low_at_least is not None:
            return comparison["ci95"][0] >= self.low_at_least
        return comparison["difference"] >= (self.difference_at_least or 0.0)


CLAIMS = (
    Claim("reflexion", "retry-sampled", p_below=0.001),
    Claim("sft", "reflexion", p_below=0.001),
    Claim("ppo-env", "sft", p_below=0.001),
    Claim("ppo-env-bon8", "ppo-env", difference_at_least=0.0),
    Claim("ppo-env", "shuffled", p_below=0.001),
    Claim("ppo-rm", "sft", low_at_least=-0.01),
)
HEADROOM = 0.5
"""Of the way from the control to the oracle, what the best arm must close."""


def configs(arguments: argparse.Namespace, seed: int) -> tuple[RunConfig, RunConfig, RunConfig]:
    """A seed's two training configs (environment, model), and the one that evaluates both."""

    def config(reward: str, suffix: str, *further: str) -> RunConfig:
        fixed = [
            f"runs={arguments.runs}",
            f"name=seed-{seed}-{suffix}",
            f"seed={seed}",
            f"environment.tasks.offset={arguments.offset}",
            f"ppo.reward={reward}",
            "evaluate.arms=[]",
            "evaluate.permutations=100000",
        ]
        return load_config(arguments.config, [*fixed, *arguments.overrides, *further])

    rm = config("model", "rm")
    policies = [ArmSection(name="ppo-rm", policy=str(rm.run_dir / "ppo")), ArmSection(name="ppo-env", policy="ppo")]
    arms = [*CONTROLS, *(arm.model_dump(mode="json") for arm in with_best_of(policies, rm.evaluate.best_of)), "oracle"]
    held_out = (f"environment.tasks.test={arguments.tasks}", f"evaluate.arms={json.dumps(arms)}")
    return config("environment", "env"), rm, config("environment", "env", *held_out)


def with_best_of(policies: Sequence[ArmSection], sizes: Sequence[int]) -> Iterator[ArmSection]:
    for policy in policies:
        yield from (policy, *(best_of(policy, n) for n in sizes))


def run_seed(arguments: argparse.Namespace, seed: int) -> None:
    """Train and evaluate one seed; what is up to date is skipped, what was interrupted resumes."""
    import torch

    from retro.cli.stages import stage_named
    from retro.stage import run_stage

    torch.set_num_threads(1)
    env, rm, evaluation = configs(arguments, seed)
    for stage in SHARED:
        run_stage(stage_named(stage), env)
    share(env, rm)
    for config in (env, rm):
        run_stage(stage_named("ppo"), config)
    run_stage(stage_named("evaluate"), evaluation)


def share(source: RunConfig, target: RunConfig) -> None:
    """Give ``target`` the buffer and the finished stages of ``source``: its own runs of them are then up to date."""
    target.run_dir.mkdir(parents=True, exist_ok=True)
    fresh = target.run_dir / "buffer.sqlite.part"
    with (
        closing(sqlite3.connect(source.run_dir / "buffer.sqlite")) as old,
        closing(sqlite3.connect(fresh)) as new,
    ):
        old.backup(new)
    for leftover in target.run_dir.glob("buffer.sqlite-*"):
        leftover.unlink()
    fresh.replace(target.run_dir / "buffer.sqlite")
    for stage in SHARED:
        if read_manifest(target.run_dir / stage) == read_manifest(source.run_dir / stage):
            continue
        part = target.run_dir / f"{stage}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source.run_dir / stage, part)
        shutil.rmtree(target.run_dir / stage, ignore_errors=True)
        part.rename(target.run_dir / stage)


def pooled(results: Mapping[int, Results]) -> dict[str, dict[int, Any]]:
    """The outcomes of all seeds by arm, in the first seed's order; arms that a seed lacks are left out."""
    by_seed = {seed: outcomes_from_json(result["outcomes"]) for seed, result in results.items()}
    first, *others = by_seed.values()
    names = [name for name in first if all(name in outcomes for outcomes in others)]
    return {name: {seed: outcomes[name][seed] for seed, outcomes in by_seed.items()} for name in names}


def descriptions(results: Mapping[int, Results]) -> dict[str, Description]:
    """What the first seed's arms are. A policy of another run is called by its arm: each seed has it elsewhere."""
    arms: dict[str, ArmResult] = next(iter(results.values()))["arms"]
    found: dict[str, Description] = {}
    for name, arm in arms.items():
        policy = arm["parts"]["policy"]
        if policy["path"] is not None:
            policy = {**policy, "name": arm["base"] or name, "path": None, "stage": "ppo"}
        found[name] = {"role": arm["role"], "parts": {**arm["parts"], "policy": policy}}
    return found


def judge(outcomes: Mapping[str, Outcomes], results: Results, draws: Draws) -> list[dict[str, Any]]:
    """Each claim with its comparison, and the headroom closed."""
    verdicts: list[dict[str, Any]] = []
    for claim in CLAIMS:
        if claim.a not in outcomes or claim.b not in outcomes:
            verdicts.append({"claim": f"{claim.a} against {claim.b}", "holds": False, "why": "an arm is missing"})
            continue
        comparison = compare(outcomes, claim.a, claim.b, results["attempts"] - 1, draws)[0]
        wanted = (
            f"above, p < {claim.p_below}"
            if claim.p_below is not None
            else f"interval's lower end ≥ {100 * claim.low_at_least:+.0f} points"
            if claim.low_at_least is not None
            else "not below"
        )
        several = comparison["seeds"] > 1
        method = compare_methods(outcomes, claim.a, claim.b, results["attempts"] - 1, draws) if several else None
        verdicts.append(
            {
                "claim": f"{claim.a} against {claim.b}: {wanted}",
                "holds": claim.holds(comparison),
                **comparison,
                "method": method,
            }
        )
    names = (one_of(results["arms"], Role.CONTROL), best_learned_arm(results), one_of(results["arms"], Role.CEILING))
    if all(names):
        control, top, oracle = (results["arms"][name or ""]["success_by_trial"][-1] for name in names)
        closed = (top - control) / (oracle - control) if oracle > control else float("nan")
        verdicts.append(
            {"claim": f"headroom closed by {names[1]} ≥ {HEADROOM}", "holds": closed >= HEADROOM, "closed": closed}
        )
    return verdicts


def summarise_seeds(arguments: argparse.Namespace) -> bool:
    """Pool the seeds that are done; write the JSON, the table and the plot; return whether every claim holds."""
    found: dict[int, Results] = {}
    rewards: dict[int, Any] = {}
    config = None
    for seed in arguments.seeds:
        _, _, config = configs(arguments, seed)
        manifest = read_manifest(config.run_dir / "evaluation")
        if manifest is not None and manifest.get("status") == "complete":
            found[seed] = read_results(config.run_dir / "evaluation" / "results.json")
            rewards[seed] = json.loads((config.run_dir / "reward" / "reward.json").read_text(encoding="utf-8"))["test"]
    if config is None or not found:
        print("no seed is done yet")
        return False
    counts = config.environment.tasks
    taskset = make_taskset(config.environment.name, config.environment.options)
    tasks = taskset.tasks(Split.TEST, counts.test, counts.offset)
    draws = Draws(config.evaluate.bootstrap, config.evaluate.permutations, seed=0)
    outcomes = pooled(found)
    results = summarise(descriptions(found), outcomes, tasks, config.evaluate.attempts, draws)
    results["seconds"] = {
        f"{stage}, mean of seeds": sum(r["seconds"].get(stage, 0.0) for r in found.values()) / len(found)
        for stage in next(iter(found.values()))["seconds"]
    }
    verdicts = judge(outcomes, results, draws)
    folder = Path(arguments.runs)
    write_json(folder / "learning.json", {"seeds": sorted(found), "verdicts": verdicts, "reward": rewards, **results})
    rows = (
        {"arm": arm, "seed": seed, "task": task, **outcome_to_json(outcome)}
        for arm, by_seed in outcomes.items()
        for seed, by_task in by_seed.items()
        for task, outcome in by_task.items()
    )
    write_atomically(folder / "outcomes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(folder / "learning.md", markdown(results, verdicts, rewards, arguments))
    save_png(success_by_trial(results), folder / "learning.png")
    console = Console()
    console.print(results_table(results))
    for verdict in verdicts:
        console.print(f"{'ok  ' if verdict['holds'] else 'FAIL'} {verdict['claim']}", highlight=False)
    console.print(f"{len(found)} of {len(arguments.seeds)} seeds → {folder / 'learning.md'}", highlight=False)
    return len(found) == len(arguments.seeds) and all(verdict["holds"] for verdict in verdicts)


def markdown(
    results: Results, verdicts: Sequence[Mapping[str, Any]], rewards: Mapping[int, Any], arguments: argparse.Namespace
) -> str:
    """The tables of ``docs/results.md``."""
    attempts = range(1, results["attempts"] + 1)
    seeds = max(arm["seeds"] for arm in results["arms"].values())
    lines = [
        f"{results['tasks']} held-out tasks (test tasks from {arguments.offset} on), {seeds} training seeds; "
        "cumulative success, 95 % "
        f"bootstrap interval over tasks of their means across seeds. {SCOPE}",
        "",
        "| arm | " + " | ".join(f"attempt {t}" for t in attempts) + " | tokens a task |",
        "|---|" + "---|" * (len(attempts) + 1),
    ]
    for name, arm in results["arms"].items():
        cells = [
            f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            for value, (low, high) in zip(arm["success_by_trial"], arm["ci95"], strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {arm['tokens_per_task']:,.0f} |")
    lines += [
        "",
        "| claim | difference, points | 95 % interval, these adapters | p (sign-flip) | seeds agreeing | holds | "
        "95 % interval, training again | seeds needed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        holds = "yes" if verdict["holds"] else "**no**"
        if "difference" in verdict:
            low, high = verdict["ci95"]
            again, needed = "one seed", ""
            if method := verdict["method"]:
                again = " to ".join(f"{100 * end:+.1f}" for end in method["ci95"])
                needed = str(method["seeds_needed"] or f"more than {MOST_SEEDS}")
            lines.append(
                f"| {verdict['claim']} | {100 * verdict['difference']:+.1f} | {100 * low:+.1f} to {100 * high:+.1f} | "
                f"{verdict['p_value']:.1e} | {verdict['seeds_agreeing']} of {verdict['seeds']} | {holds} | "
                f"{again} | {needed} |"
            )
        else:
            figure = f"{verdict['closed']:.2f}" if "closed" in verdict else verdict.get("why", "")
            lines.append(f"| {verdict['claim']} | {figure} | | | | {holds} | | |")
    lines += ["", "| seed | reward model: accuracy within groups | pairs | AUC |", "|---|---|---|---|"]
    for seed, figures in rewards.items():
        lines.append(
            f"| {seed} | {_measured(figures['accuracy'])} | {figures['pairs']} | {_measured(figures['auc'])} |"
        )
    seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in results["seconds"].items())
    return "\n".join([*lines, "", f"Wall time (one thread a seed): {seconds}."]) + "\n"


def _measured(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None or figure["ci95"] is None:
        return "undefined"
    return f"{figure['value']:.3f} ({figure['ci95'][0]:.3f} to {figure['ci95'][1]:.3f})"


def run_all(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    """Each seed in a process of its own, ``--workers`` at a time, one thread each."""
    folder = Path(arguments.runs)
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

    def worker(seed: int) -> int:
        command = [sys.executable, os.path.abspath(__file__), *argv, "--only-seed", str(seed)]
        with (folder / f"seed-{seed}.log").open("a", encoding="utf-8") as log:
            code = subprocess.run(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode
        print(f"seed {seed}: {'done' if code == 0 else f'failed ({code}), see {log.name}'}", flush=True)
        return code

    with ThreadPoolExecutor(arguments.workers) as pool:
        codes = list(pool.map(worker, arguments.seeds))
    if any(codes):
        raise SystemExit(f"{sum(map(bool, codes))} seeds failed; the same command goes on where they stopped")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--runs", default="runs/learning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--tasks", type=int, default=500, help="held-out tasks")
    parser.add_argument("--offset", type=int, default=60_000, help="tasks of each split that are skipped")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key.sub=value")
    parser.add_argument("--summarise", action="store_true", help="only pool what is done")
    parser.add_argument("--only-seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_seed is not None:
        run_seed(arguments, arguments.only_seed)
        return 0
    if not arguments.summarise:
        run_all(arguments, sys.argv[1:])
    return 0 if summarise_seeds(arguments) else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
