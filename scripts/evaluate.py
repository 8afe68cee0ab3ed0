"""`python scripts/evaluate.py --config CONFIG --checkpoint RUN_OR_ADAPTER [--checkpoint …] [key.sub=value …]`.

Without checkpoints it is the evaluate stage. With checkpoints (a run, a stage, a ``ppo/checkpoint-*``, a plain PEFT
adapter) it plays those, beside ``retry-sampled`` and ``reflexion`` or what ``evaluate.arms`` names, into
``RUN/evaluation-checkpoints``; the checkpoints of one training make a curve over its steps. What was played for an
earlier call is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retro.cli.errors import one_line_errors


def evaluate(
    config: Annotated[str, typer.Option(help="The YAML config of the run.")],
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A run, a stage, a checkpoint or a PEFT adapter; may be repeated.")
    ] = None,
    best_of: Annotated[list[int] | None, typer.Option(help="Also play each checkpoint's Best-of-N.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]")] = None,
) -> None:
    """Evaluate a run's arms, or any checkpoints.

    \b
    Examples:
      python scripts/evaluate.py --config configs/quickstart.yaml
      python scripts/evaluate.py --config configs/quickstart.yaml --checkpoint runs/quickstart/ppo/checkpoint-10 \\
        --checkpoint runs/quickstart/ppo/checkpoint-20 evaluate.arms=[retry-sampled]
    """
    from rich.console import Console

    from retro.config import load_config
    from retro.evaluation.report import Paths, read_results
    from retro.evaluation.stage import STAGE, evaluate_into, with_checkpoints
    from retro.evaluation.table import results_table
    from retro.models.loading import resolve_device
    from retro.models.threads import limit_threads
    from retro.stage import run_stage

    resolved = load_config(config, overrides or ())
    limit_threads(resolved, resolve_device(resolved.device))
    if checkpoint:
        paths = Paths(resolved.run_dir, resolved.run_dir / "evaluation-checkpoints")
        results = evaluate_into(with_checkpoints(resolved, checkpoint, best_of or ()), paths)
    else:
        paths = Paths(resolved.run_dir, run_stage(STAGE, resolved))
        results = read_results(paths.results)
    console = Console()
    console.print(results_table(results))
    console.print(str(paths.page), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    with one_line_errors():
        script = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        script.command()(evaluate)
        script()
