"""Two ways of doing the same work, timed in turn within one process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from retro.artifacts import write_json

WIDTH = 120


@dataclass(frozen=True, slots=True)
class Lap:
    """One timed piece of work."""

    wall_seconds: float
    cpu_seconds: float
    """Of this process, all its threads: what other processes on the machine disturb least."""
    amount: float = 1.0
    """How much was done, in the unit of the line that it is part of."""

    def __add__(self, other: Lap) -> Lap:
        """One after the other, on the same work."""
        return Lap(self.wall_seconds + other.wall_seconds, self.cpu_seconds + other.cpu_seconds, self.amount)


Phases = dict[str, Lap]
"""The laps of one repeat by name."""


class Stopwatch:
    """Collects the laps of one repeat.

    Args:
        settle: waits until what was begun is done: a device works on after the call that asked it has returned.
    """

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        self.phases: Phases = {}
        self._settle = settle

    @contextmanager
    def lap(self, name: str, amount: float = 1.0) -> Iterator[None]:
        self._settle()
        wall, cpu = perf_counter(), process_time()
        yield
        self._settle()
        self.phases[name] = Lap(perf_counter() - wall, process_time() - cpu, amount)

    def amount(self, name: str, amount: float) -> None:
        """Say afterwards how much a lap has done."""
        lap = self.phases[name]
        self.phases[name] = Lap(lap.wall_seconds, lap.cpu_seconds, amount)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: medians of both sides, and how many times as fast ours is."""

    name: str
    unit: str
    naive: tuple[Lap, ...]
    ours: tuple[Lap, ...]

    @property
    def ratio(self) -> float:
        """By wall time."""
        return _rate(self.ours) / _rate(self.naive)

    @property
    def cpu_ratio(self) -> float:
        return _rate(self.ours, "cpu_seconds") / _rate(self.naive, "cpu_seconds")

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the largest ratio of a single repeat, by wall time."""
        ratios = [_rate([ours]) / _rate([naive]) for naive, ours in self._pairs()]
        return min(ratios), max(ratios)

    def _pairs(self) -> Iterator[tuple[Lap, Lap]]:
        return zip(self.naive, self.ours, strict=True)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "naive": _rate(self.naive),
            "ours": _rate(self.ours),
            "ratio": self.ratio,
            "ratio_of_repeats": self.spread,
            "ratio_by_cpu_seconds": self.cpu_ratio,
            "laps": {"naive": [asdict(lap) for lap in self.naive], "ours": [asdict(lap) for lap in self.ours]},
        }


@dataclass(frozen=True, slots=True)
class Check:
    """Whether both sides computed the same thing."""

    name: str
    figure: float
    limit: float
    at_least: bool = False
    """The figure must not be below the limit; otherwise not above it."""

    @property
    def holds(self) -> bool:
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def report(result: dict[str, Any], table: Table, file: Path) -> int:
    """Print the table and the verdict of each of ``result["checks"]``, and write the result to ``file``.

    Returns:
        The exit code: 0 if all checks hold.
    """
    console = Console(width=max(WIDTH, Console().width))
    console.print(table)
    for check in result["checks"]:
        word = "at least" if check["at_least"] else "at most"
        verdict = f"{'ok  ' if check['holds'] else 'FAIL'} {check['figure']:.3g} ({word} {check['limit']:g})"
        console.print(f"{verdict}  {check['name']}", highlight=False, soft_wrap=True)
    write_json(file, result)
    console.print(f"{file} · {result['seconds']} s", highlight=False, soft_wrap=True)
    return 0 if all(check["holds"] for check in result["checks"]) else 1


def ratio_table(title: str, naive: str, ours: str, lines: Sequence[Mapping[str, Any]], digits: int = 2) -> Table:
    """The rates of both sides and their ratio, for people to read.

    Args:
        naive, ours: what the sides are called.
        lines: as :meth:`Line.to_json` makes them.
        digits: of a rate.
    """
    drawn = Table(title=title)
    for name in ("", naive, ours, "ratio", "of single repeats"):
        drawn.add_column(name, justify="left" if not name else "right")
    for line in lines:
        low, high = line["ratio_of_repeats"]
        rates = [f"{line[side]:.{digits}f}" for side in ("naive", "ours")]
        drawn.add_row(f"{line['name']} ({line['unit']})", *rates, f"{line['ratio']:.2f}", f"{low:.2f} – {high:.2f}")
    return drawn


def alternate(
    naive: Callable[[int], Phases], ours: Callable[[int], Phases], repeats: int
) -> Callable[[str, str, Sequence[str]], Line]:
    """Run both sides ``repeats`` times in turn (who begins changes); each is told the number of the repeat, from 0.

    Both must have run once before: the first pass of a process pays for much that later ones do not.

    Returns:
        A function of a name, a unit and phases: the line of those phases together.
    """
    laps: dict[bool, list[Phases]] = {False: [], True: []}
    for number in range(repeats):
        for is_ours in (False, True) if number % 2 == 0 else (True, False):
            gc.collect()
            laps[is_ours].append((ours if is_ours else naive)(number))

    def line(name: str, unit: str, phases: Sequence[str]) -> Line:
        return Line(name, unit, _together(laps[False], phases), _together(laps[True], phases))

    return line


def _together(repeats: Sequence[Phases], phases: Sequence[str]) -> tuple[Lap, ...]:
    totals = []
    for repeat in repeats:
        total = repeat[phases[0]]
        for phase in phases[1:]:
            total = total + repeat[phase]
        totals.append(total)
    return tuple(totals)


def _rate(laps: Sequence[Lap], clock: Literal["wall_seconds", "cpu_seconds"] = "wall_seconds") -> float:
    """The median amount a second."""
    by_wall = clock == "wall_seconds"
    return median(lap.amount / (lap.wall_seconds if by_wall else lap.cpu_seconds) for lap in laps)
