"""What a run would do now, stage by stage, read from the run folder alone: the stages are imported, no weights read."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from rich.table import Table

from retro.cli.stages import HOMES
from retro.config import STAGES, RunConfig
from retro.models.limits import prompt_tokens
from retro.models.loading import local_context, require_trainable
from retro.stage import Plan, plan_stage

READS: dict[str, tuple[str, ...]] = {
    "collect": (),
    "sft": ("collect",),
    "reward": ("collect",),
    "ppo": ("collect", "sft", "reward"),
    "export": ("sft", "reward", "ppo"),
    "evaluate": ("sft", "reward", "ppo"),
}
"""Whose outputs a stage reads: when those are made anew, so is it."""


TRAINING = {"sft", "reward", "ppo"}


@dataclass(frozen=True, slots=True)
class PlannedStage:
    name: str
    action: str
    why: str


def plan_run(config: RunConfig, stages: tuple[str, ...]) -> list[PlannedStage]:
    """The plan of each stage in order; a stage behind one that is not up to date runs after it.

    Raises:
        ConfigError: if a stage that trains is among them, and the model's dtype does not train; if prompts and answers
            together exceed what the base holds (of a hub name that is known only once it is loaded).
    """
    prompt_tokens(config.model, local_context(config.model))
    if TRAINING & set(stages):
        require_trainable(config.model)
    planned: list[PlannedStage] = []
    anew: set[str] = set()
    for name in stages:
        changed = [upstream for upstream in READS[name] if upstream in anew]
        plan = Plan("run", f"after {', '.join(changed)}") if changed else _plan(config, name)
        if plan.action != "up to date":
            anew.add(name)
        planned.append(PlannedStage(name, plan.action, plan.why))
    return planned


def plan_table(planned: list[PlannedStage]) -> Table:
    """The plan as a table for the terminal."""
    table = Table(title="plan", title_justify="left")
    for column in ("stage", "what", "why"):
        table.add_column(column)
    colour = {"up to date": "green", "resume": "yellow"}
    for stage in planned:
        table.add_row(stage.name, f"[{colour.get(stage.action, 'bold')}]{stage.action}[/]", stage.why)
    for name in STAGES:
        if name not in {stage.name for stage in planned}:
            table.add_row(name, "[dim]left out[/]", "[dim]--from, --until[/]")
    return table


def _plan(config: RunConfig, name: str) -> Plan:
    home = import_module(HOMES[name])
    return plan_stage(config, name, home.stage_inputs(config), home.SECTIONS)
