"""The trainings behind ``learning.py`` and ``alfworld.py``: several seeds, every method, rivals at their best rates.

First the rivals' learning rates are chosen, with a training seed that is used for nothing else, by the true return on
validation tasks. Then each seed is one run folder for each method: ``seed-S-env`` (PPO on the true ΔG), ``seed-S-rm``
(PPO on the reward model), ``seed-S-matched`` (the episodes of PPO spent on supervised learning), and one for each
rival. They share one collection, one SFT and one reward model, and all their policies are evaluated in ``seed-S-env``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.training_processes import Processes
from benchmarks.training_report import Claim, stated, summarise_seeds
from retro.artifacts import write_json
from retro.cli.logs import quieten
from retro.config import ArmSection, RunConfig, load_config
from retro.evaluation.presets import best_of
from retro.layout import BEST
from retro.reading import read_json
from retro.stage import read_manifest
from retro.training.checkpoints import STATE_FILE

SHARED = ("collect", "sft", "reward")
"""Stages that all runs of a seed share."""
CONTROLS = ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion", "sft")
"""Evaluated before the trained policies, each with its Best-of-N; the oracle comes last."""
RIVALS: dict[str, tuple[str, ...]] = {
    "ppo-gae": ("ppo.advantage=gae",),
    "ppo-rloo": ("ppo.advantage=rloo",),
    "ppo-group": ("ppo.advantage=group",),
    "dpo": ("ppo.algorithm=dpo", "ppo.kl.coefficient=0.1"),
    "grpo": ("ppo.algorithm=grpo",),
}
"""What each rival changes in the config, whose PPO learns from the true ΔG."""
FACTORS = (1 / 3, 1.0, 3.0)
"""The learning rates that a rival is tried with, as multiples of the config's."""


@dataclass(frozen=True)
class World:
    """What differs between the benchmarks of training."""

    config: str
    runs: str
    seeds: tuple[int, ...]
    tuning_seed: int
    tasks: int
    """Held-out tasks."""
    offset: int
    """Tasks of each split that are skipped."""
    claims: Sequence[Claim]
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further evaluations of the same adapters, and what each changes in the config."""
    claims_elsewhere: Mapping[str, Sequence[Claim]] = field(default_factory=dict)
    matched: tuple[str, ...] = ()
    """What ``seed-S-matched`` changes so that it has tasks enough."""


@dataclass(frozen=True)
class Benchmark:
    """A world with the command line's changes."""

    world: World
    config: str
    runs: Path
    seeds: tuple[int, ...]
    tasks: int
    workers: int
    overrides: tuple[str, ...]
    rivals: tuple[str, ...]

    def run_config(self, seed: int, name: str, *changes: str) -> RunConfig:
        """The config of the run ``seed-SEED-NAME``."""
        fixed = (
            f"runs={self.runs}",
            f"name=seed-{seed}-{name}",
            f"seed={seed}",
            f"environment.tasks.offset={self.world.offset}",
            "evaluate.arms=[]",
        )
        return load_config(self.config, [*fixed, *self.overrides, *changes])

    def main_run(self, seed: int) -> RunConfig:
        return self.run_config(seed, "env")

    def evaluation(self, seed: int, elsewhere: str | None = None) -> RunConfig:
        """The config that evaluates all policies of a seed, in the benchmark's world or in one that differs."""
        name = "env" if elsewhere is None else elsewhere
        changes = () if elsewhere is None else self.world.elsewhere[elsewhere]
        bon = self.main_run(seed).evaluate.best_of
        arms = [*CONTROLS, *(arm.model_dump(mode="json") for arm in self.policies(seed, bon)), "oracle"]
        held_out = (f"environment.tasks.test={self.tasks}", f"evaluate.arms={json.dumps(arms)}")
        return self.run_config(seed, name, *held_out, "evaluate.permutations=100000", *changes)

    def policies(self, seed: int, sizes: Sequence[int]) -> Iterator[ArmSection]:
        """The arms of a seed's trained policies: PPO's two rewards with their Best-of-N, and the others alone."""

        def arm(arm_name: str, run: str, stage: str = "ppo") -> ArmSection:
            return ArmSection(name=arm_name, policy=str(self.run_config(seed, run).run_dir / stage))

        yield arm("sft-matched", "matched", "sft")
        for ours in (arm("ppo-rm", "rm"), arm("ppo-env", "env")):
            yield from (ours, *(best_of(ours, n) for n in sizes))
        for rival in self.rivals:
            yield arm(rival, rival)

    def matched(self, seed: int) -> RunConfig:
        """A second collection, with the SFT model, of as many episodes as PPO plays; then SFT on both."""
        main = self.main_run(seed)
        ppo = main.ppo
        episodes = ppo.steps * ppo.contexts * ppo.group
        episodes += (ppo.steps // ppo.validate_every + 1) * ppo.validation_contexts
        skipped = main.environment.tasks
        changes = (
            f"collect.source={main.run_dir / 'sft'}",
            f"collect.episodes={episodes}",
            "collect.splits=[train]",
            f"environment.tasks.offset={skipped.offset + skipped.train}",
            *self.world.matched,
        )
        return self.run_config(seed, "matched", *changes)

    def rival(self, seed: int, name: str, factor: float) -> RunConfig:
        """The run of a rival at one learning rate."""
        rate = self.main_run(seed).ppo.learning_rate * factor
        suffix = "" if seed != self.world.tuning_seed else f"-{rate:.0e}"
        return self.run_config(seed, f"{name}{suffix}", *RIVALS[name], f"ppo.learning_rate={rate!r}")

    @property
    def rates_file(self) -> Path:
        return self.runs / "rates.json"

    def best_factors(self) -> dict[str, float]:
        """The factor of each rival's learning rate, of which the validation tasks say that it is the best."""
        found = read_json(self.rates_file)
        return {name: max(found[name], key=lambda one: one["validation_return"])["factor"] for name in self.rivals}


def train_shared(config: RunConfig) -> None:
    for stage in SHARED:
        run_stage_of(stage, config)


def train_rival(benchmark: Benchmark, seed: int, name: str, factor: float) -> None:
    """Train a rival from the seed's shared stages."""
    config = benchmark.rival(seed, name, factor)
    share(benchmark.main_run(seed), config)
    run_stage_of("ppo", config)


def train_seed(benchmark: Benchmark, seed: int) -> None:
    """Train and evaluate one seed; what is up to date is skipped, what was interrupted resumes."""
    main, rm = benchmark.main_run(seed), benchmark.run_config(seed, "rm", "ppo.reward=model")
    train_shared(main)
    for config in (main, rm):
        share(main, config)
        run_stage_of("ppo", config)
    for name, factor in benchmark.best_factors().items():
        train_rival(benchmark, seed, name, factor)
    matched = benchmark.matched(seed)
    if not (matched.run_dir / "buffer.sqlite").exists():
        share(main, matched, stages=())
    for stage in ("collect", "sft"):
        run_stage_of(stage, matched)
    run_stage_of("evaluate", benchmark.evaluation(seed))
    for name in benchmark.world.elsewhere:
        config = benchmark.evaluation(seed, name)
        share(main, config, stages=("sft", "reward"))
        run_stage_of("evaluate", config)


def run_stage_of(stage: str, config: RunConfig) -> None:
    from retro.cli.stages import stage_named
    from retro.stage import run_stage

    run_stage(stage_named(stage), config)


def share(source: RunConfig, target: RunConfig, stages: Sequence[str] = SHARED) -> None:
    """Give ``target`` the buffer and finished stages of ``source``: its own runs of them are then up to date."""
    if source.run_dir == target.run_dir:
        return
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
    for stage in stages:
        if read_manifest(target.run_dir / stage) == read_manifest(source.run_dir / stage):
            continue
        part = target.run_dir / f"{stage}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source.run_dir / stage, part)
        shutil.rmtree(target.run_dir / stage, ignore_errors=True)
        part.rename(target.run_dir / stage)


def run_part(benchmark: Benchmark, part: str) -> None:
    """``shared:SEED``, ``rate:RIVAL:FACTOR`` (with the tuning seed) or ``seed:SEED``."""
    import torch

    torch.set_num_threads(1)
    kind, *of = part.split(":")
    if kind == "shared":
        train_shared(benchmark.main_run(int(of[0])))
    elif kind == "rate":
        train_rival(benchmark, benchmark.world.tuning_seed, of[0], float(of[1]))
    else:
        train_seed(benchmark, int(of[0]))


def run_all(benchmark: Benchmark, argv: Sequence[str]) -> None:
    """Choose the rivals' rates, then train and evaluate every seed."""
    processes = Processes(benchmark.runs, benchmark.workers, argv)
    tuning = benchmark.world.tuning_seed
    if benchmark.rivals:
        processes.run([f"shared:{tuning}"])
        processes.run([f"rate:{name}:{factor!r}" for name in benchmark.rivals for factor in FACTORS])
    write_json(benchmark.rates_file, {name: tried(benchmark, name) for name in benchmark.rivals})
    processes.run([f"seed:{seed}" for seed in benchmark.seeds])


def tried(benchmark: Benchmark, name: str) -> list[dict[str, float]]:
    """A rival's learning rates, and what each reached on the validation tasks."""
    found = []
    for factor in FACTORS:
        config = benchmark.rival(benchmark.world.tuning_seed, name, factor)
        state = read_json(config.run_dir / "ppo" / BEST / STATE_FILE)
        rate = config.ppo.learning_rate
        found.append({"factor": factor, "learning_rate": rate, "validation_return": state["best_return"]})
    return found


def main(world: World, description: str | None) -> int:
    """The command line of a benchmark of training."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=world.config)
    parser.add_argument("--runs", type=Path, default=Path(world.runs))
    parser.add_argument("--seeds", type=int, nargs="+", default=world.seeds)
    parser.add_argument("--tasks", type=int, default=world.tasks, help="held-out tasks")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key.sub=value")
    parser.add_argument("--summarise", action="store_true", help="only pool what is done")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    overrides, rivals = tuple(given.overrides), tuple(given.rivals)
    benchmark = Benchmark(
        world, given.config, given.runs, tuple(given.seeds), given.tasks, given.workers, overrides, rivals
    )
    if given.only:
        quieten()
        run_part(benchmark, given.only)
        return 0
    if not given.summarise:
        run_all(benchmark, sys.argv[1:])
    claims = {None: world.claims, **{name: world.claims_elsewhere.get(name, ()) for name in world.elsewhere}}
    holds = [
        summarise_seeds(
            where or "results",
            given.runs,
            stated(its),
            {seed: [benchmark.evaluation(seed, where)] for seed in given.seeds},
        )[1]
        for where, its in claims.items()
    ]
    return 0 if all(holds) else 1
