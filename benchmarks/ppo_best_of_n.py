"""Best-of-N: how long N responses and their scores take, against one; one prefill an adapter for all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from benchmarks.pipeline_timing import Check, Phases, Stopwatch, alternate
from benchmarks.pipeline_work import Work
from benchmarks.ppo_device import GpuPlan, Setting, build_bench, find_device, given_work, run_settings, settle
from retro.training.policy.groups import Response

ROUNDING = {"float32": 1e-4, "bfloat16": 0.1}
"""How far a response's score among its siblings may be from its score alone."""


def measure_best_of_n(plan: GpuPlan, setting: Setting) -> dict[str, Any]:
    """Seconds from a prompt to the best of ``plan.sizes.group`` responses, and to the only one of one."""
    device = find_device(plan.device)
    many = plan.sizes.group
    plans = {count: replace(plan, sizes=replace(plan.sizes, group=count)) for count in (1, many)}
    bench = build_bench(plan, setting, device)
    configs = {count: run_settings(of, setting) for count, of in plans.items()}
    sides = {count: bench.side(config) for count, config in configs.items()}
    contexts = given_work(plan, configs[many]).contexts

    def answer(count: int, number: int) -> Phases:
        watch = Stopwatch(partial(settle, device))
        with watch.lap("sample"):
            responses = sides[count].draw(contexts, number)
        with watch.lap("score"):
            scores = sides[count].scores(Work(configs[count], contexts, responses))
            max(range(count), key=scores.__getitem__)
        return watch.phases

    for count in plans:
        answer(count, plan.repeats)
    line = alternate(partial(answer, 1), partial(answer, many), plan.repeats)
    lines = [
        line(f"N = {many} against N = 1", "answers/s", ["sample", "score"]),
        line("  sampling", "answers/s", ["sample"]),
        line("  scoring", "answers/s", ["score"]),
    ]
    given = given_work(plan, configs[many])
    together = sides[many].scores(given)
    alone = [sides[1].scores(Work(configs[1], contexts, [only(response)])) for response in given.responses]
    apart = max(abs(score - one[0]) for score, one in zip(together, alone, strict=True))
    return {
        "setting": setting.name,
        "lines": [item.to_json() for item in lines],
        "latency_seconds": {
            str(count): median(lap.wall_seconds for lap in laps)
            for count, laps in ((1, lines[0].naive), (many, lines[0].ours))
        },
        "checks": [
            Check("largest difference of a score alone and among siblings", apart, ROUNDING[setting.dtype]).to_json()
        ],
        "targets": [Check(f"latency of N = {many} to that of N = 1", 1 / lines[0].ratio, 1.5).to_json()],
        "config": configs[many].model_dump(mode="json"),
    }


def only(response: Response) -> Response:
    """The same response as the only one of its group."""
    return replace(response, index=0)
