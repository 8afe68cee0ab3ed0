"""What the seeds of a training benchmark say together: the table, the plot, and each claim with its interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from retro.artifacts import write_atomically, write_json
from retro.config import RunConfig
from retro.envs import make_taskset
from retro.evaluation.figures import save_png, success_by_trial
from retro.evaluation.report import read_results
from retro.evaluation.results import (
    SCOPE,
    ArmResult,
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
from retro.layout import RunFolder
from retro.reading import read_json
from retro.stage import read_manifest
from retro.types import Split

BEST_ARM = "the best trained arm"
"""As a claim's arm: the one that solved most at the last attempt, chosen on the test tasks themselves."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``a`` is above ``b``, by a difference that training again would give, too.

    It holds if the difference is large enough and the lower end of its two-level interval (training seeds, then tasks)
    is above ``above``.
    """

    a: str
    b: str
    difference_at_least: float = 0.0
    above: float = 0.0
    attempt: int | None = None
    """By default the last one."""

    def __str__(self) -> str:
        wanted = [f"interval above {100 * self.above:+.0f}"]
        if self.difference_at_least:
            wanted.insert(0, f"≥ {100 * self.difference_at_least:.0f}")
        at = f" at attempt {self.attempt}" if self.attempt else ""
        return f"{self.a} against {self.b}{at}: {', '.join(wanted)} points"

    def holds(self, difference: float, low: float) -> bool:
        return difference >= self.difference_at_least and low > self.above


Claims = Callable[[Results], Sequence[Claim]]
"""The claims about a table, of which some may be about the arm that is best in it."""


def stated(claims: Sequence[Claim]) -> Claims:
    """Claims that do not depend on the table."""
    return lambda _: claims


HEADROOM = 0.5
"""Of the way from the control to the oracle, what the best arm must close."""


def merged(evaluations: Sequence[Results]) -> Results:
    """Several evaluations of one seed on the same tasks as one: their arms have different names."""
    first, *others = evaluations
    arms, outcomes, seconds = dict(first["arms"]), dict(first["outcomes"]), dict(first["seconds"])
    for other in others:
        arms |= other["arms"]
        outcomes |= other["outcomes"]
        seconds |= other["seconds"]
    return {**first, "arms": arms, "outcomes": outcomes, "seconds": seconds}


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
        if "bank" in arm:
            found[name]["bank"] = arm["bank"]
    return found


def judge(
    claims: Sequence[Claim], outcomes: Mapping[str, Outcomes], results: Results, draws: Draws
) -> list[dict[str, Any]]:
    """Each claim with its comparisons, within the seeds and between them, and the headroom closed."""
    last = results["attempts"] - 1
    best = best_learned_arm(results)
    verdicts: list[dict[str, Any]] = []
    for claim in claims:
        a = best if claim.a == BEST_ARM else claim.a
        if a not in outcomes or claim.b not in outcomes:
            verdicts.append({"claim": str(claim), "holds": False, "why": "an arm is missing"})
            continue
        trial = last if claim.attempt is None else claim.attempt - 1
        paired = compare(outcomes, a, claim.b, trial, draws)[0]
        several = paired["seeds"] > 1
        method = compare_methods(outcomes, a, claim.b, trial, draws) if several else None
        holds = method is not None and claim.holds(paired["difference"], method["ci95"][0])
        verdicts.append({"claim": str(claim), "holds": holds, **paired, "method": method})
    names = (one_of(results["arms"], Role.CONTROL), best, one_of(results["arms"], Role.CEILING))
    if all(names):
        control, top, oracle = (results["arms"][name or ""]["success_by_trial"][-1] for name in names)
        closed = (top - control) / (oracle - control) if oracle > control else float("nan")
        claim_text = f"headroom closed by {names[1]} ≥ {HEADROOM}"
        verdicts.append({"claim": claim_text, "holds": closed >= HEADROOM, "closed": closed})
    return verdicts


def summarise_seeds(
    name: str, folder: Path, claims: Claims, evaluations: Mapping[int, Sequence[RunConfig]]
) -> tuple[Results | None, bool]:
    """Pool the seeds that are evaluated; write ``NAME.json``, its table, its plot and every task's outcome.

    Args:
        evaluations: the configs of a seed's evaluations, which play the same tasks.

    Returns:
        The results (None: no seed is done yet), and whether every seed is done and every claim holds.
    """
    found: dict[int, Results] = {}
    rewards: dict[int, Any] = {}
    for seed, configs in evaluations.items():
        manifests = [read_manifest(config.run_dir / "evaluation") for config in configs]
        if all(manifest is not None and manifest.get("status") == "complete" for manifest in manifests):
            found[seed] = merged([read_results(config.run_dir / "evaluation" / "results.json") for config in configs])
            rewards[seed] = read_json(RunFolder(configs[0].run_dir).reward / "reward.json")["test"]
    if not found:
        print(f"{name}: no seed is done yet")
        return None, False
    config = evaluations[next(iter(found))][0]
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
    verdicts = judge(claims(results), outcomes, results, draws)
    write_json(folder / f"{name}.json", {"seeds": sorted(found), "verdicts": verdicts, "reward": rewards, **results})
    rows = (
        {"arm": arm, "seed": seed, "task": task, **outcome_to_json(outcome)}
        for arm, by_seed in outcomes.items()
        for seed, by_task in by_seed.items()
        for task, outcome in by_task.items()
    )
    write_atomically(folder / f"{name}.outcomes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(folder / f"{name}.md", markdown(results, verdicts, rewards, counts.offset))
    save_png(success_by_trial(results), folder / f"{name}.png")
    console = Console()
    console.print(results_table(results))
    for verdict in verdicts:
        console.print(f"{'ok  ' if verdict['holds'] else 'FAIL'} {verdict['claim']}", highlight=False)
    console.print(f"{len(found)} of {len(evaluations)} seeds → {folder / name}.md", highlight=False)
    return results, len(found) == len(evaluations) and all(verdict["holds"] for verdict in verdicts)


def markdown(results: Results, verdicts: Sequence[Mapping[str, Any]], rewards: Mapping[int, Any], offset: int) -> str:
    """The tables of ``docs/results.md``."""
    attempts = range(1, results["attempts"] + 1)
    seeds = max(arm["seeds"] for arm in results["arms"].values())
    lines = [
        f"{results['tasks']} held-out tasks (test tasks from {offset} on), {seeds} training "
        f"{'seeds' if seeds > 1 else 'seed'}; cumulative success in percent, 95 % intervals "
        f"({'bootstrap over tasks of their means across seeds' if seeds > 1 else 'Wilson'}). {SCOPE}",
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
        lines.append(f"| {seed} | {measured(figures['accuracy'])} | {figures['pairs']} | {measured(figures['auc'])} |")
    seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in results["seconds"].items())
    return "\n".join([*lines, "", f"Wall time (one thread a seed): {seconds}."]) + "\n"


def measured(figure: Mapping[str, Any]) -> str:
    """A figure of ``reward.json`` with its interval."""
    if figure["value"] is None or figure["ci95"] is None:
        return "undefined"
    return f"{figure['value']:.3f} ({figure['ci95'][0]:.3f} to {figure['ci95'][1]:.3f})"
