"""Plans what each stage of a run would do now, from the run folder. Stages are imported; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from retro.buffer.engine import database_url
from retro.cli.stages import ordered_stages
from retro.config import RunConfig, resolve
from retro.models.limits import prompt_tokens
from retro.models.loading import local_context, require_trainable
from retro.stage import Plan, Stage, plan_stage


def plan_run(config: RunConfig, stages: Sequence[Stage]) -> dict[str, Plan]:
    """The plan of each stage by its name, in order; a stage that reads one which is not up to date runs after it.

    Raises:
        ConfigError: if a package of a stage or of the runner is missing; if a stage trains, but the model's dtype does
            not; if prompts and answers together exceed the base's context (not known yet for the name of a hub).
        ReplayBufferError: if ``buffer.url`` is malformed, or its driver is missing. It is not opened.
    """
    for stage in stages:
        stage.require_packages()
    database_url(config.buffer_url)
    resolve(config.runner.point, config.runner.chosen)
    prompt_tokens(config.model, local_context(config.model))
    if any(stage.trains for stage in stages):
        require_trainable(config.model)
    planned: dict[str, Plan] = {}
    for stage in stages:
        changed = [name for name in stage.reads if name in planned and planned[name].action != "up to date"]
        planned[stage.name] = Plan("run", f"after {', '.join(changed)}") if changed else plan_stage(stage, config)
    return planned


def plan_table(planned: Mapping[str, Plan], config: RunConfig) -> Table:
    """The plan as a table for the terminal, without the stages that a run of this config does not have."""
    table = Table(title="plan", title_justify="left")
    for column in ("stage", "what", "why"):
        table.add_column(column)
    colour = {"up to date": "green", "resume": "yellow"}
    for name, plan in planned.items():
        table.add_row(name, f"[{colour.get(plan.action, 'bold')}]{plan.action}[/]", plan.why)
    for stage in ordered_stages():
        if stage.applies(config) and stage.name not in planned:
            table.add_row(stage.name, "[dim]left out[/]", "[dim]--from, --until[/]")
    return table
