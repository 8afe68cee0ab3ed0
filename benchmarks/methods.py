"""Which method helps, and at what cost? Every memory × who reflects × sampler, on the same tasks and attempts.

    nohup python benchmarks/methods.py > methods.log &                  # everything, two worker processes; resumes
    nohup python benchmarks/methods.py --world alfworld > methods.log & # the same in ALFWorld's unseen rooms
    python benchmarks/methods.py --summarise                            # the seeds that are done
    python benchmarks/methods.py --memories window procedures --samplers first --seeds 101 --tasks 200

Each seed is trained once (collection, SFT, reward model, PPO) and evaluated once for each memory, with the same
adapters; a bank is folded from the seed's collection. An arm is named by what differs from ``retry``: its memory, who
reflects, the sampler, joined by ``+``. Written to ``runs/methods-WORLD``: ``results.{json,md,png}``,
``results.outcomes.jsonl``, and ``tokens.png``, success against tokens with the Pareto front.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where ``alfworld`` is not the package

from benchmarks import alfworld, learning
from benchmarks.training_processes import Processes
from benchmarks.training_report import BEST_ARM, Claim, summarise_seeds
from benchmarks.training_runs import Benchmark, run_stage_of, share, train_shared
from retro.artifacts import write_atomically
from retro.cli.errors import one_line_errors
from retro.cli.logs import quieten
from retro.config import RunConfig
from retro.evaluation.figures import save_png
from retro.evaluation.results import Results
from retro.memory.bank import learns

WORLDS = {"household": replace(learning.WORLD, offset=70_000), "alfworld": alfworld.WORLD}
MEMORIES: dict[str, tuple[str, ...]] = {
    "window": (),
    "trajectories": (),
    "retrieval": (),
    "procedures": ("memory.procedures=3",),  # the parts of a task are procedures of their own
    "playbook": (),
}
"""Kinds of memories, and what is not as by default. ``window`` first: it is the memory without a bank."""
POLICIES = {"": "none", "reflexion": "base", "sft": "sft", "ppo-env": "ppo"}
"""Who writes the reflections: nobody, the untrained model, the model after SFT, the model after PPO."""
SAMPLERS: dict[str, dict[str, Any]] = {
    "first": {},
    "best_of": {"kind": "best_of", "n": 8},
    "backtrack": {"kind": "backtrack"},
    "refine": {"kind": "refine"},
}
CONTROL = "shuffled"
"""The bank with its kinds shuffled."""


def name_of(*parts: str) -> str:
    return "+".join(filter(None, parts)) or "retry"


def arms(memory: str, samplers: Sequence[str], policy: Path) -> Iterator[dict[str, Any]]:
    """The arms of one memory's evaluation.

    Args:
        policy: the folder of the seed's PPO stage.
    """
    bank = "" if memory == "window" else memory
    if not bank:
        yield {"name": "retry-sampled", "policy": "none", "retries": {"temperature": 1.0}}
        yield {"name": "oracle", "policy": "oracle"}
    for who, writer in POLICIES.items():
        written = str(policy) if writer == "ppo" else writer
        for sampler in samplers if who else ("first",):
            arm = {"name": name_of(bank, who, sampler.replace("first", "")), "policy": written}
            yield arm | ({"sampler": SAMPLERS[sampler]} if SAMPLERS[sampler] else {})
        if bank and who in ("", "ppo-env"):
            yield {"name": name_of(bank, who, CONTROL), "policy": written, "memory": {"shuffled": True}}


def evaluation(benchmark: Benchmark, samplers: Sequence[str], seed: int, memory: str) -> RunConfig:
    """The config that evaluates a seed's adapters with one memory."""
    policy = benchmark.main_run(seed).run_dir / "ppo"
    chosen = json.dumps(list(arms(memory, samplers, policy)))
    changes = (
        f"memory.kind={memory}",
        *MEMORIES[memory],
        f"environment.tasks.test={benchmark.tasks}",
        f"evaluate.arms={chosen}",
    )
    return benchmark.run_config(seed, memory, *changes)


def run_part(benchmark: Benchmark, samplers: Sequence[str], part: str) -> None:
    """``train:SEED``, or ``SEED:MEMORY``, the evaluation with one memory."""
    import torch

    torch.set_num_threads(1)
    what, of = part.split(":")
    if what == "train":
        main = benchmark.main_run(int(of))
        train_shared(main)
        run_stage_of("ppo", main)
        return
    config = evaluation(benchmark, samplers, int(what), of)
    share(benchmark.main_run(int(what)), config, stages=("sft", "reward"))
    for stage in ("memory", "evaluate") if learns(config.memory) else ("evaluate",):
        run_stage_of(stage, config)


def best_bank(results: Results) -> str | None:
    """The memory whose bank alone, without reflections, solves most at attempt 1: chosen on the test tasks."""
    first = {name: results["arms"][name]["success_by_trial"][0] for name in MEMORIES if name in results["arms"]}
    return max(first, key=lambda name: first[name], default=None)


def claims(results: Results) -> list[Claim]:
    """What a bank should give: at attempt 1 alone, not when it is shuffled, and on top of the trained reflector."""
    stated = [Claim(BEST_ARM, "retry-sampled"), Claim("ppo-env+best_of", "ppo-env", above=-0.01)]
    bank = best_bank(results)
    if bank is None:
        return stated
    return [
        *stated,
        Claim(bank, "retry", difference_at_least=0.15, attempt=1),
        Claim("retry", name_of(bank, CONTROL), above=-0.03, attempt=1),
        Claim(name_of(bank, "ppo-env"), "ppo-env", attempt=2),
    ]


def pareto(results: Results) -> list[str]:
    """The arms that no other one reaches with as few tokens, the cheapest first; without the oracle and controls."""
    front: list[str] = []
    arms = {name: arm for name, arm in results["arms"].items() if name != "oracle" and CONTROL not in name.split("+")}
    for name in sorted(arms, key=lambda name: arms[name]["tokens_per_task"]):
        best = arms[front[-1]]["success_by_trial"][-1] if front else -1.0
        if arms[name]["success_by_trial"][-1] > best:
            front.append(name)
    return front


COLOURS = dict(zip(MEMORIES, ("#5f5f5f", "#E69F00", "#56B4E9", "#009E73", "#CC79A7"), strict=True))
MARKERS = {"": "s", "reflexion": "^", "sft": "v", "ppo-env": "o"}


def success_by_tokens(results: Results) -> Figure:
    """Success at the last attempt against tokens a task: a colour for each memory, a marker for who reflects."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, arm in results["arms"].items():
        if name == "oracle":
            continue
        parts = name.split("+")
        memory = next((part for part in parts if part in COLOURS), "window")
        who = next((part for part in parts if part in MARKERS), "")
        filled = "none" if CONTROL in parts else COLOURS[memory]
        at = (arm["tokens_per_task"], arm["success_by_trial"][-1])
        axes.plot(*at, MARKERS[who], color=COLOURS[memory], markerfacecolor=filled, markersize=7)
    front = [results["arms"][name] for name in pareto(results)]
    x, y = [arm["tokens_per_task"] for arm in front], [arm["success_by_trial"][-1] for arm in front]
    axes.step(x, y, where="post", color="#222222", linewidth=1.0, zorder=0)
    for name, *at in zip(pareto(results), x, y, strict=True):
        axes.annotate(name, at, xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8)
    for memory, colour in COLOURS.items():
        axes.plot([], [], "s", color=colour, label=memory)
    for who, marker in MARKERS.items():
        axes.plot([], [], marker, color="#222222", label=who or "no reflections")
    axes.plot([], [], "s", color="#222222", markerfacecolor="none", label="bank shuffled")
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(0, 1)
    axes.set_xlabel("tokens a task: actor, reflections, reward model (building a bank is not in them)")
    axes.set_ylabel(f"tasks solved after {results['attempts']} attempts")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def banks_table(results: Results) -> str:
    """What each bank holds and cost; with several seeds, the first one's."""
    rows = ["| bank | entries | bytes | episodes | actor's tokens to play them |", "|---|---|---|---|---|"]
    for name in MEMORIES:
        if bank := results["arms"].get(name, {}).get("bank"):
            figures = (bank["entries"], bank["bytes"], bank["episodes"], bank["actor_tokens"])
            rows.append(f"| {name} | {' | '.join(f'{figure:,}' for figure in figures)} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(WORLDS), default="household")
    parser.add_argument("--runs", type=Path, help="by default runs/methods-WORLD")
    parser.add_argument("--seeds", type=int, nargs="+", default=(101, 102, 103))
    parser.add_argument("--tasks", type=int, default=500, help="held-out tasks")
    parser.add_argument("--memories", nargs="+", choices=list(MEMORIES), default=list(MEMORIES))
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key.sub=value")
    parser.add_argument("--summarise", action="store_true", help="only pool what is done")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    world, runs = WORLDS[given.world], given.runs or Path("runs") / f"methods-{given.world}"
    overrides = tuple(given.overrides)
    benchmark = Benchmark(world, world.config, runs, tuple(given.seeds), given.tasks, given.workers, overrides, ())
    if given.only:
        quieten()
        run_part(benchmark, given.samplers, given.only)
        return 0
    if not given.summarise:
        processes = Processes(runs, given.workers, sys.argv[1:])
        processes.run([f"train:{seed}" for seed in given.seeds])
        processes.run([f"{seed}:{memory}" for seed in given.seeds for memory in given.memories])
    evaluate = partial(evaluation, benchmark, given.samplers)
    evaluations = {seed: [evaluate(seed, memory) for memory in given.memories] for seed in given.seeds}
    results, holds = summarise_seeds("results", runs, claims, evaluations)
    if results is not None:
        save_png(success_by_tokens(results), runs / "tokens.png")
        table = runs / "results.md"
        write_atomically(table, f"{table.read_text(encoding='utf-8')}\n{banks_table(results)}")
    return 0 if holds else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
