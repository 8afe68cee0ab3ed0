"""How a collection is going: episodes a second, success so far, time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from retro.types import Episode


class CollectionProgress:
    """A bar on a terminal; elsewhere a line every ``every_seconds``. Told of what happened, it never asks."""

    def __init__(
        self, tasks: int, label: str = "collect", console: Console | None = None, every_seconds: float = 30.0
    ) -> None:
        self._total = tasks
        self._label = label
        self._console = console or Console(stderr=True)
        self._every = every_seconds
        self._begun = self._told = time.monotonic()
        self._played = self._errors = self._done = self._recalled = self._solved = 0
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Self:
        self._begun = self._told = time.monotonic()
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
            )
            self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
            self._row = self._bar.add_task(self._label, total=self._total, line="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        ending = "" if kind is None else " · interrupted: what was played is kept"
        self._console.print(f"{self._label}: {self._done}/{self._total} tasks · {self.line()}{ending}", highlight=False)

    def episode(self) -> None:
        """An episode has just been played; one that is only recalled is not told."""
        self._played += 1
        self._tell()

    def task(self, episodes: list[Episode], recalled: bool = False) -> None:
        """A task is over, with all of its episodes; ``recalled`` if none of them was played now."""
        self._done += 1
        self._recalled += recalled
        self._errors += sum(episode.broken for episode in episodes)
        self._solved += any(episode.success for episode in episodes)
        self._tell()

    def line(self) -> str:
        """What there is to say now."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        parts = [f"{self._played} episodes ({self._played / seconds:.1f}/s)"]
        if self._done:
            parts.append(f"solved {self._solved / self._done:.0%}")
        if self._errors:
            parts.append(f"[red]actor errors {self._errors}[/red]")
        timed = self._done - self._recalled  # what was recalled took no time
        if timed and self._done < self._total:
            parts.append(f"{_clock(seconds / timed * (self._total - self._done))} left")
        else:
            parts.append(_clock(seconds))
        return " · ".join(parts)

    def _tell(self) -> None:
        if self._bar and self._row is not None:
            self._bar.update(self._row, completed=self._done, line=self.line())
        elif time.monotonic() - self._told >= self._every:
            self._told = time.monotonic()
            self._console.print(f"{self._label}: {self._done}/{self._total} tasks · {self.line()}", highlight=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
