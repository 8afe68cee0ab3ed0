"""A made-up evaluation: outcomes, records and metrics of a few arms, without models."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retro.artifacts import write_json
from retro.config import EvaluateSection, PolicySection, RunConfig, parse_section
from retro.evaluation.arms import describe
from retro.evaluation.presets import planned_arms
from retro.evaluation.records import EpisodeRecords, Record, chains
from retro.evaluation.results import Draws, Results, summarise
from retro.evaluation.roles import Description
from retro.evaluation.statistics import outcome
from retro.types import Episode, Recalled, Reflection, Split, Step, StopReason, Task, Trajectory, Usage

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" \u2028 'single'"
"""What no text of a model may do to a page."""
RATES = {
    "one-shot": 0.15, "retry": 0.0, "retry-sampled": 0.08, "shuffled": 0.13, "reflexion": 0.24, "sft": 0.34,
    "ppo-rm": 0.34, "ppo-rm-bon4": 0.36, "ppo-rm-bon8": 0.37, "ppo-env": 0.48, "ppo-env-bon4": 0.5,
    "ppo-env-bon8": 0.53, "oracle": 0.92,
}  # fmt: skip
ATTEMPTS = 4


def described(names: Iterable[str]) -> dict[str, Description]:
    """What short names stand for: those with ``rm`` in a run whose policy learnt from the reward model."""
    found = {}
    for name in names:
        reward = "model" if "rm" in name else "environment"
        config = RunConfig(
            ppo=parse_section(PolicySection, {"reward": reward}),
            evaluate=EvaluateSection(attempts=ATTEMPTS, arms=[name]),
        )
        found[name] = describe(planned_arms(config)[0], config)
    return found


def tasks(count: int) -> list[Task]:
    kinds = ("pick", "look", "clean", "heat", "cool", "pick two")
    return [Task("household", f"test-{i:03d}", Split.TEST, kinds[i % len(kinds)]) for i in range(count)]


def chain(arm: str, task: Task, seed: int) -> list[Record]:
    """Episodes of one task: solved at first in 15 % of cases, and by the arm's rate at each retry."""
    rng = random.Random(f"{arm} {task.id} {seed}")
    first = random.Random(f"{task.id}").random() < 0.15
    records: list[Record] = []
    for trial in range(1 if arm == "one-shot" else ATTEMPTS):
        success = first if trial == 0 else rng.random() < RATES[arm]
        reflection, candidates = None, ()
        if trial and "retry" not in arm:
            best_of = int(arm.rpartition("bon")[2]) if "bon" in arm else 1
            candidates = tuple(
                Reflection(
                    f"the mug is in cabinet {rng.randint(1, 9)}; open it first {HOSTILE}",
                    source=arm,
                    index=i,
                    usage=Usage(50, 17),
                    score=rng.gauss(0, 1),
                )
                for i in range(best_of)
            )
            reflection = max(candidates, key=lambda c: c.score or 0)
            candidates = candidates if best_of > 1 else ()
        recalled = Recalled((reflection.text,), ("reflection-0",)) if reflection else Recalled()
        steps = tuple(Step(f"go to cabinet {i}", f"the cabinet {i} is closed", 0.0, "where is it?") for i in range(3))
        episode = Episode(
            f"{task.id}/{trial}", task, trial, Trajectory("You are in a room. Task: heat a mug.", steps),
            1.0 if success else rng.choice((0.0, 0.3, 0.6)), success,
            StopReason.SUCCESS if success else StopReason.HORIZON, f"{task.id}/{trial - 1}" if trial else None,
            reflection, recalled, usage=Usage(900, 60),
        )  # fmt: skip
        records.append(Record(arm, "digest", episode, candidates))
        if success:
            break
    return records


def made_up(arms: list[str], count: int, seeds: int = 1) -> tuple[Results, list[Record]]:
    played = {arm: {seed: {t.id: chain(arm, t, seed) for t in tasks(count)} for seed in range(seeds)} for arm in arms}
    outcomes = {
        arm: {
            seed: {task: outcome(records, ATTEMPTS) for task, records in by_task.items()}
            for seed, by_task in of_arm.items()
        }
        for arm, of_arm in played.items()
    }
    results = summarise(described(arms), outcomes, tasks(count), ATTEMPTS, Draws(bootstrap=500, permutations=2_000))
    results["seconds"] = {"collect": 101.2, "sft": 35.0}
    results["notes"] = ["shuffled: reflections by ppo-env-bon8 for other tasks of the same kind and attempt."]
    return results, [record for of_arm in played.values() for records in of_arm[0].values() for record in records]


def reward_figures() -> dict[str, Any]:
    """``reward.json`` in the shape that the reward stage writes."""
    bins = [
        {"from": p - 0.1, "to": p, "count": 50, "probability": p - 0.05, "outcome": p - 0.08} for p in (0.6, 0.7, 0.8)
    ]
    accuracy = {"value": 0.712, "ci95": [0.68, 0.75]}
    return {"loss": "bce", "test": {"accuracy": accuracy, "auc": {"value": None, "ci95": None}, "reliability": bins}}


def write_run(run: Path, arms: list[str], count: int, seeds: int = 1) -> Path:
    results, records = made_up(arms, count, seeds)
    write_json(run / "evaluation" / "results.json", results)
    with EpisodeRecords(run / "evaluation" / "episodes.jsonl") as file:
        for record in records:
            file.add(record)
    write_json(run / "reward" / "reward.json", reward_figures())
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 31):
            file.write(
                json.dumps({"stage": "sft", "step": step, "seconds": step, "loss": 2 / step, "accuracy": 1 - 1 / step})
                + "\n"
            )
            file.write(
                json.dumps({"stage": "ppo", "step": step, "score": step / 30, "kl": None, "entropy": 1 / step}) + "\n"
            )
    assert chains(records)
    return run
