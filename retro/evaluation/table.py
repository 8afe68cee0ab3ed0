"""The table of arms by attempts, for the terminal's last screen."""

from __future__ import annotations

from rich import box
from rich.table import Table

from retro.evaluation.results import SCOPE, Results
from retro.evaluation.roles import LEARNED
from retro.ties import exceeds, highest


def results_table(results: Results) -> Table:
    """Cumulative success with its 95 % interval at each attempt, and tokens a task; the best trained arm is bold.

    If seeds are pooled, the caption says what the intervals are about.
    """
    several = any(arm["seeds"] > 1 for arm in results["arms"].values())
    table = Table(  # four attempts fit 80 columns whole
        title=f"success by attempt, {results['tasks']} held-out tasks (95 % intervals)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        caption=SCOPE if several else None,
        caption_justify="left",
    )
    table.add_column("arm", overflow="fold")  # a long name gives way, not the figures
    for attempt in range(1, results["attempts"] + 1):
        table.add_column(f"attempt {attempt}", justify="right", no_wrap=True)
    table.add_column("tokens/task", justify="right", no_wrap=True)
    best = best_learned_arm(results)
    for name, arm in results["arms"].items():
        cells = [
            f"{_share(value)} [dim]{_share(low)}-{_share(high)}[/dim]"
            for value, (low, high) in zip(arm["success_by_trial"], arm["ci95"], strict=True)
        ]
        table.add_row(name, *cells, f"{arm['tokens_per_task']:,.0f}", style="bold" if name == best else None)
    return table


def best_learned_arm(results: Results) -> str | None:
    """The arm with an adapter that solved most at the last attempt; of equal ones the one with the higher return.

    None if none of them earned anything, or if the best two are equal in both.
    """
    arms = results["arms"]
    learned = [n for n, arm in arms.items() if arm["role"] in LEARNED and exceeds(arm["return_by_trial"][-1])]
    for figure in ("success_by_trial", "return_by_trial"):
        learned = [learned[index] for index in highest([arms[name][figure][-1] for name in learned])]
    return learned[0] if len(learned) == 1 else None


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.0"
