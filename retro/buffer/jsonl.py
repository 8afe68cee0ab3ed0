"""Episodes as JSON lines: the user's own trials in, the buffer out. The schema is described in ``docs/buffer.md``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from retro.buffer.engine import EpisodeRefusedError
from retro.buffer.lines import Line, read_line, write_line
from retro.buffer.recalled import WINDOW, Derivation
from retro.buffer.splits import SplitRule
from retro.buffer.store import ReplayBuffer
from retro.reading import UnreadableError, read_lines
from retro.types import Episode, Split

SHOWN_PROBLEMS = 20

OnError = Literal["refuse", "skip"]


class BufferImportError(ValueError):
    """A file that was not imported: the message names each bad line by its number. Nothing of it is in the buffer."""


@dataclass(frozen=True, slots=True)
class BadLine:
    number: int
    """From 1."""
    problem: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.problem}"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did."""

    added: int
    present: int = 0
    """Episodes that were in the buffer already, equal."""
    skipped: tuple[BadLine, ...] = field(default=())


def import_jsonl(
    buffer: ReplayBuffer,
    path: str | Path,
    on_error: OnError = "refuse",
    rule: SplitRule | None = None,
    window: int = WINDOW,
) -> ImportReport:
    """Add the episodes of a JSONL file in one transaction: all of them, or (on any error) none.

    A parent may stand after its child. A line is bad if it cannot be read (see :func:`retro.reading.parse_json`), does
    not follow the schema, or can't be added (its id is taken, its parent is missing or bad itself …).

    Args:
        on_error: ``refuse`` the file if a line is bad, or ``skip`` such lines.
        rule: the split of tasks whose lines name none.
        window: how many reflections an actor saw, where its line does not say it (see :class:`Derivation`).

    Raises:
        BufferImportError: naming the file and its bad lines.
    """
    path = Path(path)
    bad: list[BadLine] = []
    lines: list[tuple[int, Line]] = []
    if not path.is_file():
        raise BufferImportError(f"{path}: no such file")
    for number, line in read_lines(path):
        try:
            lines.append((number, read_line(line, rule or SplitRule())))
        except UnreadableError as error:
            bad.append(BadLine(number, str(error)))
    # A parent's trial is smaller than its child's, so this order puts every parent first.
    lines.sort(key=lambda numbered: (numbered[1].episode.trial, numbered[0]))
    derivation = Derivation(window, buffer.get)
    good = [(number, _shown(line, derivation)) for number, line in lines]
    added = present = 0
    with buffer.transaction() as add:
        for number, episode in good:
            try:
                if add(episode):
                    added += 1
                else:
                    present += 1
            except EpisodeRefusedError as error:
                bad.append(BadLine(number, str(error)))
        bad.sort(key=lambda bad_line: bad_line.number)
        if bad and on_error == "refuse":
            raise BufferImportError(_refusal(path, bad))
    return ImportReport(added, present, tuple(bad))


def export_jsonl(
    buffer: ReplayBuffer, path: str | Path, environment: str | None = None, split: Split | str | None = None
) -> int:
    """Write the buffer's episodes to ``path``, parents first; return how many. :func:`import_jsonl` reads it back.

    Raises:
        ReplayBufferError: naming the episode, if the buffer is damaged, or an earlier release has stored in it what no
            line can say.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("wb") as file:
        for episode in buffer.episodes(environment, split):
            file.write(write_line(episode))
            count += 1
    os.replace(partial, path)
    return count


def _shown(line: Line, derivation: Derivation) -> Episode:
    derived = derivation(line.episode)  # of every line: those below it build on its reflections
    return line.episode if line.says_recalled else derived


def _refusal(path: Path, bad: Sequence[BadLine]) -> str:
    shown = [f"  {line}" for line in bad[:SHOWN_PROBLEMS]]
    rest = [f"  … and {len(bad) - SHOWN_PROBLEMS} more"] if len(bad) > SHOWN_PROBLEMS else []
    remedy = "Correct them, or import with --on-error skip to leave them out."
    return "\n".join([f"{path}: nothing was imported, {len(bad)} bad lines:", *shown, *rest, remedy])
