"""Shows the progress of a collection: episodes per second, success so far, time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from retro.types import Episode

EVERY_SECONDS = 30.0
"""Between two lines of a log."""


class CollectionProgress:
    """A bar on a terminal, or else a line every ``every_seconds``."""

    def __init__(
        self, tasks: int, label: str = "collect", console: Console | None = None, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._total = tasks
        self._label = label
        self._console = console or Console(stderr=True)
        self._every = every_seconds
        self._begun = self._printed = time.monotonic()
        self._played = self._errors = self._done = self._recalled = self._solved = 0
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Self:
        self._begun = self._printed = time.monotonic()
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
        """Count an episode that has just been played, not one that was read from the journal."""
        self._played += 1
        self._update()

    def task(self, episodes: list[Episode], recalled: bool = False) -> None:
        """Count a task that is over; ``recalled`` if all its episodes were read from the journal."""
        self._done += 1
        self._recalled += recalled
        self._errors += sum(episode.broken for episode in episodes)
        self._solved += any(episode.success for episode in episodes)
        self._update()

    def line(self) -> str:
        """The current state in words."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        parts = [f"{self._played} episodes ({self._played / seconds:.1f}/s)"]
        if self._done:
            parts.append(f"{self._solved} solved")
        if self._errors:
            parts.append(f"[red]actor errors {self._errors}[/red]")
        timed = self._done - self._recalled  # reading from the journal took no time
        # No estimate from the first tasks that end: they are the easy ones.
        if self._done < self._total and timed >= max(1, (self._total - self._recalled) / 10):
            parts.append(f"{clock(seconds / timed * (self._total - self._done))} left")
        else:
            parts.append(clock(seconds))
        return " · ".join(parts)

    def _update(self) -> None:
        if self._bar and self._row is not None:
            self._bar.update(self._row, completed=self._done, line=self.line())
        elif time.monotonic() - self._printed >= self._every:
            self._printed = time.monotonic()
            self._console.print(f"{self._label}: {self._done}/{self._total} tasks · {self.line()}", highlight=False)


def clock(seconds: float) -> str:
    """``9:05``, or ``1:09:05`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
