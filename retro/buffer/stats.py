"""What is in a buffer, by environment: the numbers and the table of ``retro buffer stats``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table
from sqlalchemy import ColumnElement, Integer, and_, case, cast, func, not_, or_, select

from retro.buffer.schema import episodes, tasks
from retro.buffer.store import ReplayBuffer
from retro.ties import EQUAL
from retro.types import Split, StopReason


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


def _count(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    """How many rows meet all conditions."""
    return func.coalesce(func.sum(case((and_(*conditions), 1), else_=0)), 0)


_failed, _retry = episodes.alias("failed"), episodes.alias("retry")
_reflected = _retry.c.reflection.is_not(None)
_has_trajectory = or_(
    _failed.c.trajectory["opening"].as_string() != "",
    func.json_array_length(_failed.c.trajectory["steps"]) > 0,
)
_of_return = _retry.c["return"] - _failed.c["return"]
_of_success = cast(_retry.c.success, Integer) - cast(_failed.c.success, Integer)
_CHANGES = {
    "by_return": (_of_return, (_reflected, _has_trajectory)),
    "by_success": (_of_success, (_reflected, _has_trajectory)),
    "controls_by_return": (_of_return, (not_(_reflected),)),
}
"""The counts of changes, each with the difference and the retries that it counts. Equality is that of
:mod:`retro.ties`."""

_EPISODES = select(
    episodes.c.environment, func.count().label("episodes"), _count(episodes.c.success).label("successes")
).group_by(episodes.c.environment)
_TASKS = select(tasks.c.environment, tasks.c.split, func.count().label("tasks")).group_by(
    tasks.c.environment, tasks.c.split
)
_RETRIES = (
    select(
        _failed.c.environment,
        func.count(_failed.c.id.distinct()).label("groups"),
        _count(_reflected, _has_trajectory).label("tuples"),
        _count(_reflected, not_(_has_trajectory)).label("outcomes_only"),
        _count(not_(_reflected)).label("controls"),
        *(
            _count(condition, *counted).label(f"{name}_{direction}")
            for name, (change, counted) in _CHANGES.items()
            for direction, condition in (
                ("up", change >= EQUAL),
                ("equal", func.abs(change) < EQUAL),
                ("down", change <= -EQUAL),
            )
        ),
    )
    .join(_retry, _retry.c.parent == _failed.c.id)
    .where(_retry.c.stop.not_in([StopReason.ACTOR_ERROR.value, StopReason.ENVIRONMENT_ERROR.value]))
    .group_by(_failed.c.environment)
)


def buffer_stats(buffer: ReplayBuffer) -> list[EnvironmentStats]:
    """One entry an environment, in the order of their names. The database counts; no episode is read."""
    found = {
        row["environment"]: EnvironmentStats(row["environment"], episodes=row["episodes"], successes=row["successes"])
        for row in buffer.query(_EPISODES)
    }
    for row in buffer.query(_TASKS):
        if row["environment"] in found:
            found[row["environment"]].tasks[Split(row["split"])] = row["tasks"]
    for row in buffer.query(_RETRIES):
        stats = found[row["environment"]]
        stats.groups, stats.tuples, stats.outcomes_only = row["groups"], row["tuples"], row["outcomes_only"]
        stats.controls = row["controls"]
        for name in _CHANGES:
            setattr(stats, name, Change(*(row[f"{name}_{direction}"] for direction in ("up", "equal", "down"))))
    return [found[name] for name in sorted(found)]


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
