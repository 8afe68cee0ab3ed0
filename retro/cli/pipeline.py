"""``retro run``: prints the plan, runs each stage in this process, and prints the results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from retro.agent.records import EXPORT, served_by
from retro.artifacts import write_atomically
from retro.cli.estimate import memory_lines, most_episodes
from retro.cli.leasing import leased
from retro.cli.plan import plan_run, plan_table
from retro.config import ConfigError, RunConfig
from retro.config.extras import require
from retro.layout import ADAPTER, RunFolder
from retro.stage import NothingToLearnError, Stage, run_stage


def run_pipeline(config: RunConfig, stages: Sequence[Stage], config_path: str) -> None:
    """Run ``stages`` in order. A stage that is up to date is skipped; an interrupted one resumes.

    Raises:
        LeaseHeldError: if another process works on this run.
    """
    console = Console()
    with leased(config, stages):
        write_atomically(RunFolder(config.run_dir).config, config.dump())
        console.print(plan_table(plan_run(config, stages), config))
        for stage in stages:
            _run_stage(stage, config, console)
    if stages[-1].name == "evaluate":
        last_screen(config.run_dir, config_path, console)


def _run_stage(stage: Stage, config: RunConfig, console: Console) -> None:
    started = time.monotonic()
    console.print(f"\n[bold]{stage.name}[/bold]")
    try:
        folder = run_stage(stage, config)
    except NothingToLearnError as error:
        if not stage.optional(config):
            raise
        console.print(f"[yellow]{stage.name}: left out, no Best-of-N then: {error}[/yellow]", highlight=False)
    else:
        console.print(f"[dim]{stage.name}: {time.monotonic() - started:.0f} s → {folder}[/dim]")


def dry_run_pipeline(config: RunConfig, stages: Sequence[Stage]) -> None:
    """Print the resolved config, the plan, what is missing, and estimates; write nothing and run nothing."""
    console = Console()
    print(config.dump())
    planned = plan_run(config, stages)
    console.print(plan_table(planned, config))
    if any(name in ("collect", "evaluate") and plan.action != "up to date" for name, plan in planned.items()):
        from retro.envs import make_taskset

        try:
            make_taskset(config.environment.name, config.environment.options).close()
        except ConfigError as error:  # a package, an option or data
            console.print(f"\n[bold]still missing[/bold]\n  {escape(str(error))}", highlight=False, soft_wrap=True)
    asked = {stage.name for stage in stages}
    notes = {"ppo": ", validation included", "evaluate": " an arm"}
    most = [
        f"  {name}: {count:,} episodes{notes.get(name, '')}"
        for name, count in most_episodes(config).items()
        if name in asked
    ]
    if most:
        console.print("\n[bold]at most[/bold] (as if every attempt but the last failed)")
        console.print("\n".join(most))
    console.print("\n[bold]memory[/bold] (from the checkpoints' headers)")
    for line in memory_lines(config):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def report_run(run_dir: Path) -> None:
    """``retro report``: rebuild tables, plot and page from the results of the evaluation; of a run that has none yet,
    write the page about its stages."""
    require("retro report", "train", ("matplotlib",))
    from retro.evaluation.pages import write_progress
    from retro.evaluation.report import Paths, rebuild_report

    run = RunFolder(run_dir)
    if not run.config.is_file():
        raise ConfigError(f"{run_dir}: not a run folder (no config.yaml); runs are made by retro run")
    if not Paths(run_dir, run.evaluation).results.is_file():
        print(f"not evaluated yet; what there is so far: {write_progress(run_dir)}")
        return
    rebuild_report(run_dir)
    last_screen(run_dir, str(RunFolder(run_dir).config), Console())


def last_screen(run_dir: Path, config_path: str, console: Console) -> None:
    """Print the table of arms × attempts, the paths of the results, and commands to go on with."""
    from retro.evaluation.report import Paths, read_results
    from retro.evaluation.table import results_table

    run = RunFolder(run_dir)
    paths = Paths(run_dir, run.evaluation)
    results = read_results(paths.results)
    console.print()
    console.print(results_table(results))
    for note in results["notes"]:
        console.print(f"[dim]{note}[/dim]", highlight=False)
    console.print()
    for name, path in (
        ("adapter", run.export / ADAPTER),
        ("plot", paths.plot),
        ("report", paths.page),
    ):
        if path.exists():
            console.print(f"{name:<8} {path}", highlight=False, soft_wrap=True)
    console.print("\n[bold]go on with[/bold]")
    for what, command in next_commands(run_dir, config_path):
        console.print(f"[dim]# {what}[/dim]\n{command}", highlight=False, soft_wrap=True, markup=True)


def next_commands(run_dir: Path, config_path: str) -> list[tuple[str, str]]:
    """What a user may do next, with commands, as far as this run and this folder allow it."""
    export = RunFolder(run_dir).export
    exported, example, seven_b = (export / EXPORT).is_file(), "examples/own_environment.py", "configs/hotpotqa.yaml"
    commands = [
        (
            "your own actor, behind any OpenAI-compatible endpoint",
            f"retro run {config_path} name=own-actor actor.kind=openai actor.model=MODEL actor.base_url=http://localhost:8000/v1",
        ),
    ]
    if exported and Path(example).is_file():
        commands.append(("your own environment: a step function and this export", f"python {example} {export}"))
    if exported:
        commands.append(("this export behind a server, with vLLM", served_by(export)))
    if config_path != seven_b and Path(seven_b).is_file():
        commands.append(("a 7B retrospective model on one GPU", f"retro run {seven_b} --dry-run"))
    return commands
