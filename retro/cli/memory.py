"""``retro memory``: the stage ``memory``, and ``show``, which prints what a memory has learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

STAGE = "fold"
"""The hidden command that runs the stage: ``retro memory CONFIG`` stands for it, as for the other stages."""


class _StageOrCommand(TyperGroup):
    """Takes a first argument that is not the name of a command for the config of the stage."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else [STAGE, *args])


memory_app = typer.Typer(
    cls=_StageOrCommand,
    help="Let a memory that learns across tasks learn from the buffer, or show what it has learnt.\n\n"
    "\b\nExamples:\n  retro memory configs/quickstart.yaml name=quickstart memory.kind=playbook\n"
    "  retro memory show runs/quickstart",
    subcommand_metavar="CONFIG [key.sub=value]... | show FOLDER",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@memory_app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A run folder, an export, or the folder of a bank.")],
    query: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Print what is recalled for a task that begins with this text.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="Likewise for a task of the run, which its environment begins.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many entries are printed.")] = 20,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Import a memory of one's own, with all your rights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all entries.")] = False,
) -> None:
    """Print what a memory has learnt: its bank, the most valuable entries first.

    \b
    Examples:
      retro memory show runs/quickstart
      retro memory show runs/quickstart --task test-0
      retro memory show runs/quickstart/export --query "Your task is to: heat a mug." --json
    """
    from retro.cli.showing import show_bank

    show_bank(folder, query, task, None if as_json else limit, trust_remote_code)
