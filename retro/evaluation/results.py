"""What ``results.json`` says, computed from the outcomes: curves, intervals, paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from retro.evaluation.roles import Description, base_of, planned_pairs
from retro.evaluation.statistics import Floats, Outcome, bootstrap_mean, mcnemar_exact, sign_flip, wilson
from retro.ties import minus, sign
from retro.types import Task, derive_seed

SCOPE = (
    "Intervals and p-values are about these trained adapters on new tasks of the same kind. They do not say what "
    "training again, with another seed, would give."
)
"""What the intervals and tests are about, for the reader of a page. They resample and flip tasks, never seeds: with
several seeds they are about the mean over those seeds' adapters."""
Interval = tuple[float, float]
Outcomes = Mapping[int, Mapping[str, Outcome]]
"""Of one arm: seed → task id → outcome. Every seed holds the same tasks."""


class Breakdown(TypedDict):
    tasks: int
    success_by_trial: list[float]
    return_by_trial: list[float]


class ArmResult(Description):
    base: str | None
    """See :func:`~retro.evaluation.roles.base_of`."""
    success_by_trial: list[float]
    """Share of tasks solved at attempt t or earlier, mean over seeds."""
    return_by_trial: list[float]
    """Mean of the best return so far."""
    ci95: list[Interval]
    """Of ``success_by_trial``: Wilson for one seed; for several, a bootstrap over tasks of their means across seeds."""
    return_ci95: list[Interval]
    """Of ``return_by_trial``: a bootstrap over tasks."""
    tokens_per_task: float
    seeds: int
    """How many seeds were pooled; each has adapters of its own."""
    tasks: int
    by_environment: dict[str, Breakdown]
    by_kind: dict[str, Breakdown]


class Comparison(TypedDict):
    a: str
    b: str
    trial: int
    difference: float
    """Success of ``a`` minus success of ``b``, on the tasks that both played."""
    ci95: Interval
    """Of ``difference``: a bootstrap over tasks of their means across seeds."""
    p_value: float
    """For the hypothesis that these seeds' adapters do not differ on new tasks."""
    test: Literal["sign-flip", "mcnemar-exact"]
    tasks: int
    seeds: int
    seeds_agreeing: int
    """Seeds whose own difference has the sign of ``difference``: the only figure here that is about training again."""


class Results(TypedDict):
    tasks: int
    attempts: int
    arms: dict[str, ArmResult]
    comparisons: list[Comparison]
    seconds: dict[str, float]
    outcomes: dict[str, dict[str, dict[str, dict[str, Any]]]]
    """Arm → seed → task id → ``{"solved_at": trial | null, "returns": [..], "tokens": n}``."""
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Draws:
    """How often intervals and tests draw, and from which seed."""

    bootstrap: int = 10_000
    permutations: int = 100_000
    seed: int = 0


def summarise(
    arms: Mapping[str, Description],
    outcomes: Mapping[str, Outcomes],
    tasks: Sequence[Task],
    attempts: int,
    draws: Draws,
) -> Results:
    """Everything that ``results.json`` says, except the stages' seconds and the notes.

    Raises:
        ValueError: if the seeds of an arm played different tasks.
    """
    by_id = {task.id: task for task in tasks}
    described = {name: arms[name] for name in outcomes}
    return Results(
        tasks=len(tasks),
        attempts=attempts,
        arms={name: _arm(name, described, of_arm, by_id, draws) for name, of_arm in outcomes.items()},
        comparisons=[c for a, b in planned_pairs(described) for c in compare(outcomes, a, b, attempts - 1, draws)],
        seconds={},
        outcomes={
            name: {
                str(seed): {task: outcome_to_json(o) for task, o in by_task.items()} for seed, by_task in of_arm.items()
            }
            for name, of_arm in outcomes.items()
        },
        notes=[],
    )


def compare(outcomes: Mapping[str, Outcomes], a: str, b: str, trial: int, draws: Draws) -> list[Comparison]:
    """Paired tests of two arms at one trial: sign-flip over per-task means, and exact McNemar if there is one seed.

    Seeds and tasks that only one of the arms has are left out. Without a common one there is no comparison.
    """
    seeds, ids, (solved_a, solved_b) = paired_success(outcomes, a, b, trial)
    if not ids:
        return []
    by_task = (solved_a - solved_b).mean(axis=0)  # (T,)
    by_seed = (solved_a - solved_b).mean(axis=1)  # (S,)
    difference = minus(float(by_task.mean()), 0.0)
    shared = Comparison(
        a=a,
        b=b,
        trial=trial,
        difference=difference,
        ci95=bootstrap_mean(by_task, draws.bootstrap, derive_seed(draws.seed, "difference", a, b, trial)),
        p_value=sign_flip(by_task, draws.permutations, derive_seed(draws.seed, "sign-flip", a, b, trial)),
        test="sign-flip",
        tasks=len(ids),
        seeds=len(seeds),
        seeds_agreeing=sum(sign(value) == sign(difference) != 0 for value in by_seed.tolist()),
    )
    if len(seeds) > 1:
        return [shared]
    exact = mcnemar_exact([bool(x) for x in solved_a[0]], [bool(x) for x in solved_b[0]])
    return [shared, {**shared, "p_value": exact, "test": "mcnemar-exact"}]


def paired_success(
    outcomes: Mapping[str, Outcomes], a: str, b: str, trial: int
) -> tuple[list[int], list[str], tuple[Floats, Floats]]:
    """The seeds and the tasks that two arms share, and the success (S, T) of each arm at one trial."""
    seeds = sorted(outcomes[a].keys() & outcomes[b].keys())
    ids = sorted(set.intersection(*({*outcomes[arm][seed]} for arm in (a, b) for seed in seeds))) if seeds else []
    of_a, of_b = (
        np.array([[outcomes[arm][seed][task].success[trial] for task in ids] for seed in seeds], dtype=np.float64)
        for arm in (a, b)
    )
    return seeds, ids, (of_a, of_b)


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    solved_at = outcome.success.index(True) if any(outcome.success) else None
    return {"solved_at": solved_at, "returns": list(outcome.returns), "tokens": outcome.tokens}


def outcomes_from_json(
    value: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[int, dict[str, Outcome]]]:
    """The inverse of what :class:`Results` keeps under ``outcomes``, to pool the results of several runs."""
    return {
        name: {
            int(seed): {
                task: Outcome(
                    tuple(o["solved_at"] is not None and t >= o["solved_at"] for t in range(len(o["returns"]))),
                    tuple(o["returns"]),
                    o["tokens"],
                )
                for task, o in by_task.items()
            }
            for seed, by_task in of_arm.items()
        }
        for name, of_arm in value.items()
    }


def _arm(
    name: str, arms: Mapping[str, Description], outcomes: Outcomes, tasks: Mapping[str, Task], draws: Draws
) -> ArmResult:
    seeds = sorted(outcomes)
    ids = sorted(outcomes[seeds[0]])
    for seed in seeds:
        if sorted(outcomes[seed]) != ids:
            raise ValueError(f"arm {name}: seed {seed} played other tasks than seed {seeds[0]}; evaluate it anew")
    success, returns = (
        np.array([[getattr(outcomes[seed][task], figure) for task in ids] for seed in seeds], dtype=np.float64)
        for figure in ("success", "returns")
    )  # (S, T, K)
    rows = [tasks[task] for task in ids]

    def bootstrapped(values: Floats, what: str) -> list[Interval]:
        by_trial = values.mean(axis=0).T  # (K, T)
        seeds = (derive_seed(draws.seed, what, name, trial) for trial in range(len(by_trial)))
        return [bootstrap_mean(of_trial, draws.bootstrap, seed) for of_trial, seed in zip(by_trial, seeds, strict=True)]

    return ArmResult(
        **arms[name],
        base=base_of(name, arms),
        success_by_trial=_curve(success),
        return_by_trial=_curve(returns),
        ci95=bootstrapped(success, "success")
        if len(seeds) > 1
        else [wilson(int(solved), len(ids)) for solved in success[0].sum(axis=0)],
        return_ci95=bootstrapped(returns, "return"),
        tokens_per_task=float(np.mean([outcomes[seed][task].tokens for seed in seeds for task in ids])),
        seeds=len(seeds),
        tasks=len(ids),
        by_environment=_breakdown(success, returns, [task.environment for task in rows]),
        by_kind=_breakdown(success, returns, [task.kind or task.environment for task in rows]),
    )


def _breakdown(success: Floats, returns: Floats, groups: Sequence[str]) -> dict[str, Breakdown]:
    columns: dict[str, list[int]] = {}
    for column, group in enumerate(groups):
        columns.setdefault(group, []).append(column)
    return {
        group: Breakdown(
            tasks=len(where), success_by_trial=_curve(success[:, where]), return_by_trial=_curve(returns[:, where])
        )
        for group, where in sorted(columns.items())
    }


def _curve(values: Floats) -> list[float]:
    return [float(value) for value in values.mean(axis=(0, 1))]
