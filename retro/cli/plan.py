"""What a run would do now, stage by stage, read from the run folder alone: the stages are imported, no weights read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from retro.cli.stages import ordered_stages
from retro.config import RunConfig
from retro.models.limits import prompt_tokens
from retro.models.loading import local_context, require_trainable
from retro.stage import Plan, Stage, plan_stage


@dataclass(frozen=True, slots=True)
class PlannedStage:
    name: str
    action: str
    why: str


def plan_run(config: RunConfig, stages: Sequence[Stage]) -> list[PlannedStage]:
    """The plan of each stage in order; a stage behind one that is not up to date runs after it.

    Raises:
        ConfigError: if a stage that trains is among them, and the model's dtype does not train; if prompts and answers
            together exceed what the base holds (of a hub name that is known only once it is loaded).
    """
    prompt_tokens(config.model, local_context(config.model))
    if any(stage.trains for stage in stages):
        require_trainable(config.model)
    planned: list[PlannedStage] = []
    anew: set[str] = set()
    for stage in stages:
        changed = [upstream for upstream in stage.reads if upstream in anew]
        plan = Plan("run", f"after {', '.join(changed)}") if changed else plan_stage(stage, config)
        if plan.action != "up to date":
            anew.add(stage.name)
        planned.append(PlannedStage(stage.name, plan.action, plan.why))
    return planned


def plan_table(planned: list[PlannedStage], config: RunConfig) -> Table:
    """The plan as a table for the terminal; stages that a run of this config does not have are not in it."""
    table = Table(title="plan", title_justify="left")
    for column in ("stage", "what", "why"):
        table.add_column(column)
    colour = {"up to date": "green", "resume": "yellow"}
    for entry in planned:
        table.add_row(entry.name, f"[{colour.get(entry.action, 'bold')}]{entry.action}[/]", entry.why)
    for stage in ordered_stages():
        if stage.applies(config) and stage.name not in {entry.name for entry in planned}:
            table.add_row(stage.name, "[dim]left out[/]", "[dim]--from, --until[/]")
    return table
