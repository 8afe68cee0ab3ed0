"""The table of arms by attempts, for the terminal's last screen."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.markup import escape
from rich.table import Table

from retro.evaluation.results import SCOPE, Results
from retro.evaluation.roles import LEARNED
from retro.ties import exceeds, highest


def results_table(results: Results) -> Table:
    """Cumulative success with its 95 % interval at each attempt, and tokens a task; the best trained arm is bold.

    If seeds are pooled, the caption says what the intervals are about; it also says what banks the arms played with.
    """
    several = any(arm["seeds"] > 1 for arm in results["arms"].values())
    caption = [*([SCOPE] if several else []), *_banks(results)]
    table = Table(  # four attempts fit 80 columns whole
        title=f"success by attempt, {results['tasks']} held-out tasks (95 % intervals)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        caption="\n".join(caption) or None,
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

    An arm whose bank is shuffled is a control and does not count. None if no arm earned anything, or if the best two
    are equal in both.
    """
    arms = {name: arm for name, arm in results["arms"].items() if not arm["parts"]["memory"].get("shuffled")}
    learned = [n for n, arm in arms.items() if arm["role"] in LEARNED and exceeds(arm["return_by_trial"][-1])]
    for figure in ("success_by_trial", "return_by_trial"):
        learned = [learned[index] for index in highest([arms[name][figure][-1] for name in learned])]
    return learned[0] if len(learned) == 1 else None


def _banks(results: Results) -> Iterator[str]:
    """A sentence about each bank, which names its arms if there are others."""
    arms_of: dict[str, list[str]] = {}
    for name, arm in results["arms"].items():
        if "bank" in arm:
            arms_of.setdefault(arm["bank"]["digest"], []).append(name)
    for names in arms_of.values():
        bank = results["arms"][names[0]]["bank"]
        entries = "" if bank["entries"] is None else f"{bank['entries']:,} entries, "
        who = "All arms" if len(names) == len(results["arms"]) else ", ".join(names)
        curated = f" and {bank['curator_tokens']:,} of the curator" if bank.get("curator_tokens") else ""
        yield escape(
            f"{who}: with a bank of {entries}{bank['bytes']:,} bytes, from {bank['episodes']:,} episodes that took "
            f"{bank['actor_tokens']:,} tokens of the actor{curated}."
        )


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.0"
