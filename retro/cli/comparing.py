"""``retro compare``: what two ways of playing differ by, over runs with different training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from retro.config import ConfigError
from retro.evaluation.report import Paths, read_results
from retro.evaluation.results import Draws
from retro.evaluation.roles import planned_pairs
from retro.evaluation.seeds import MOST_SEEDS, MethodComparison, compare_methods, pool
from retro.layout import RunFolder


def compare_runs(runs: Sequence[Path], arms: tuple[str, str] | None) -> None:
    """Print the difference between two arms, or between all pairs of the evaluation, over the seeds of ``runs``.

    Raises:
        ConfigError: if the runs cannot be compared, or lack an arm.
    """
    if len({run.resolve() for run in runs}) < 2:
        raise ConfigError(
            "a claim about a method needs at least two runs with different seeds; one run's figures are about its own "
            "adapters, and retro report shows them"
        )
    results = {str(run): read_results(Paths(run, RunFolder(run).evaluation).results) for run in runs}
    outcomes = pool(results)
    first = next(iter(results.values()))
    for arm in arms or ():
        if arm not in outcomes:
            raise ConfigError(f"--arms: not every run has the arm {arm!r}; all have: {', '.join(outcomes) or 'none'}")
    pairs = [arms] if arms else planned_pairs({name: first["arms"][name] for name in outcomes})
    try:
        found = [compare_methods(outcomes, a, b, first["attempts"] - 1, Draws()) for a, b in pairs]
    except ValueError as error:
        raise ConfigError(f"{error}; evaluate the runs on the same tasks") from None
    Console().print(_table(found, len(runs)))


def _table(comparisons: Sequence[MethodComparison], runs: int) -> Table:
    table = Table(  # fits 80 columns
        title=f"difference of success at the last attempt, in points, {runs} training seeds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        caption="Intervals are about training again with other seeds, on other tasks of the same kind.\n"
        "Seeds needed: so many would tell the arms apart if the true difference were this one.",
        caption_justify="left",
    )
    table.add_column("arms", overflow="fold")  # long names give way, not the figures
    for heading in ("mean", "95 % interval", "bootstrap", "range of seeds", "seeds needed"):
        table.add_column(heading, justify="right", no_wrap=heading != "seeds needed")
    for comparison in comparisons:
        by_seed = comparison["by_seed"].values()
        table.add_row(
            f"{comparison['a']} − {comparison['b']}",
            f"{100 * comparison['difference']:+.1f}",
            *map(_points, (comparison["ci95"], comparison["bootstrap_ci95"], (min(by_seed), max(by_seed)))),
            str(comparison["seeds_needed"] or f"> {MOST_SEEDS}"),
        )
    return table


def _points(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}"
