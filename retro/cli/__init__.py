"""The command line: ``main`` is the ``retro`` command, and scripts under ``accelerate launch`` call ``stage_main``."""

from __future__ import annotations

from typing import Annotated

import typer

from retro.cli.app import app
from retro.cli.errors import one_line_errors
from retro.cli.logs import quieten


def main() -> None:
    """The ``retro`` command."""
    with one_line_errors():
        app()


def stage_main(stage: str) -> None:
    """One stage as a script: ``--config CONFIG [key.sub=value …]``; every process of a launch calls it.

    The stage runs whatever the state of earlier stages; it resumes where it was interrupted.
    """

    def command(
        config: Annotated[str, typer.Option(help="The YAML config of the run.")],
        overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]")] = None,
    ) -> None:
        quieten()

        from retro.cli.leasing import leased
        from retro.cli.stages import stage_named
        from retro.config import load_config
        from retro.stage import run_stage

        resolved, chosen = load_config(config, overrides or ()), stage_named(stage)
        with leased(resolved, [chosen]):
            folder = run_stage(chosen, resolved)
        print(folder)

    command.__doc__ = (
        f"Run the stage {stage}.\n\nExample: accelerate launch scripts/... --config configs/quickstart.yaml name=mine"
    )
    with one_line_errors():
        script = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        script.command()(command)
        script()
