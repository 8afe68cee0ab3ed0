"""What is in a buffer, by environment: the numbers and the table of ``retro buffer stats``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rich.table import Table

from retro.buffer.store import Group, ReplayBuffer
from retro.buffer.views import has_trajectory
from retro.ties import sign
from retro.types import Episode, Split


@dataclass(frozen=True, slots=True)
class Change:
    """How often the next attempt was better than, equal to or worse than the failed one."""

    up: int = 0
    equal: int = 0
    down: int = 0

    def __str__(self) -> str:
        return f"{self.up:,}/{self.equal:,}/{self.down:,}"


@dataclass(slots=True)
class EnvironmentStats:
    """One environment's part of a buffer."""

    environment: str
    tasks: Counter[Split] = field(default_factory=Counter)
    episodes: int = 0
    successes: int = 0
    groups: int = 0
    tuples: int = 0
    """Retries with a reflection on a failed episode whose trajectory is known: training can use these."""
    outcomes_only: int = 0
    """Retries with a reflection on an episode of which only the outcome is known."""
    by_return: Change = Change()
    """Changes of the graded return (F1 on HotPotQA) in the tuples."""
    by_success: Change = Change()
    """Changes of success (exact match on HotPotQA) in the tuples."""
    controls: int = 0
    controls_by_return: Change = Change()
    """Changes of the return in retries without a reflection: the noise floor."""


def buffer_stats(buffer: ReplayBuffer) -> list[EnvironmentStats]:
    """One entry an environment, in the order of their names."""
    found = []
    for name, of_environment in groupby(buffer.episodes(), key=lambda episode: episode.task.environment):
        played = list(of_environment)
        stats = EnvironmentStats(name, episodes=len(played), successes=sum(episode.success for episode in played))
        stats.tasks = Counter(task.split for task in {episode.task for episode in played})
        _count(stats, buffer.groups([name]))
        found.append(stats)
    return found


def stats_table(stats: Sequence[EnvironmentStats]) -> Table:
    """A table with one column for each environment."""
    table = Table(title="replay buffer")
    table.add_column("")
    for item in stats:
        table.add_column(item.environment, justify="right")
    rows = [
        (
            "tasks (train / validation / test)",
            [" / ".join(str(item.tasks[split]) for split in Split) for item in stats],
        ),
        ("episodes", [str(item.episodes) for item in stats]),
        ("successes", [str(item.successes) for item in stats]),
        ("groups (failed episodes that were retried)", [str(item.groups) for item in stats]),
        ("tuples with trajectory and reflection", [f"{item.tuples:,}" for item in stats]),
        ("  by return: up/equal/down", [str(item.by_return) for item in stats]),
        ("  by success: up/equal/down", [str(item.by_success) for item in stats]),
        ("reflections without a trajectory", [str(item.outcomes_only) for item in stats]),
        ("controls (retries without a reflection)", [str(item.controls) for item in stats]),
        ("  by return: up/equal/down", [str(item.controls_by_return) for item in stats]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _count(stats: EnvironmentStats, groups: Iterable[Group]) -> None:
    reflected: list[tuple[Episode, Episode]] = []
    controls: list[tuple[Episode, Episode]] = []
    for group in groups:
        stats.groups += 1
        pairs = [(group.parent, retry) for retry in group.retries]
        if has_trajectory(group.parent):
            reflected += pairs
        else:
            stats.outcomes_only += len(pairs)
        controls += [(group.parent, control) for control in group.controls]
    stats.tuples, stats.controls = len(reflected), len(controls)
    stats.by_return = _change(after.return_ - before.return_ for before, after in reflected)
    stats.by_success = _change(float(after.success - before.success) for before, after in reflected)
    stats.controls_by_return = _change(after.return_ - before.return_ for before, after in controls)


def _change(differences: Iterable[float]) -> Change:
    signs = Counter(sign(value) for value in differences)
    return Change(signs[1], signs[0], signs[-1])
