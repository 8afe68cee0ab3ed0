"""Episodes as JSON lines: the user's own trials in, the buffer out. The schema is described in ``docs/buffer.md``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from retro.buffer.engine import EpisodeRefusedError
from retro.buffer.lines import Line, read_line, write_line
from retro.buffer.recalled import WINDOW, Derivation
from retro.buffer.splits import SplitRule
from retro.buffer.store import ReplayBuffer
from retro.reading import UnreadableError, read_lines
from retro.types import Split

SHOWN_PROBLEMS = 20

OnError = Literal["refuse", "skip"]


class BufferImportError(ValueError):
    """A file that was not imported: the message names each bad line by its number. The buffer is unchanged."""


class BadLine(NamedTuple):
    """A line that was not imported."""

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
    skipped: tuple[BadLine, ...] = ()


def import_jsonl(
    buffer: ReplayBuffer,
    path: str | Path,
    on_error: OnError = "refuse",
    rule: SplitRule | None = None,
    window: int = WINDOW,
) -> ImportReport:
    """Add the episodes of a JSONL file in one transaction: all of them, or none if anything fails.

    A parent may come after its child. A line is bad if it cannot be read (see :func:`retro.reading.parse_json`), does
    not follow the schema, or can't be added (its id is taken, its parent is missing or on a bad line …).

    Args:
        on_error: ``refuse`` the file if a line is bad, or ``skip`` such lines.
        rule: Chooses the split of a task whose line names none.
        window: How many reflections an actor saw, where its line does not say so (see :class:`Derivation`).

    Raises:
        BufferImportError: naming the file and its bad lines.
    """
    path = Path(path)
    bad: list[BadLine] = []
    lines: list[tuple[int, Line]] = []
    if not path.is_file():
        raise BufferImportError(f"{path}: no such file")
    for number, content in read_lines(path):
        try:
            lines.append((number, read_line(content, rule or SplitRule())))
        except UnreadableError as error:
            bad.append(BadLine(number, str(error)))
    # A parent's trial is smaller than its child's, so this order puts every parent first.
    lines.sort(key=lambda numbered: (numbered[1].episode.trial, numbered[0]))
    derivation = Derivation(window, buffer.get)
    good = []
    for number, line in lines:
        derived = derivation(line.episode)  # of every line, since the retries of its episode build on its reflections
        good.append((number, line.episode if line.says_recalled else derived))
    added = present = 0
    with buffer.transaction() as add:
        for number, episode in good:
            try:
                new = add(episode)
                added, present = added + new, present + (not new)
            except EpisodeRefusedError as error:
                bad.append(BadLine(number, str(error)))
        bad.sort()
        if bad and on_error == "refuse":
            raise refuse(f"{path}: nothing was imported", bad)
    return ImportReport(added, present, tuple(bad))


def export_jsonl(
    buffer: ReplayBuffer, path: str | Path, environment: str | None = None, split: Split | str | None = None
) -> int:
    """Write the buffer's episodes to ``path``, parents first; return how many. :func:`import_jsonl` reads it back.

    Raises:
        ReplayBufferError: naming the episode, if the buffer is damaged, or holds a value that JSON cannot express.
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


def refuse(what: str, bad: Sequence[object]) -> BufferImportError:
    """The error that names the bad lines."""
    shown = [f"  {line}" for line in bad[:SHOWN_PROBLEMS]]
    rest = [f"  … and {len(bad) - SHOWN_PROBLEMS} more"] if len(bad) > SHOWN_PROBLEMS else []
    remedy = "Correct them, or import with --on-error skip to leave them out."
    return BufferImportError("\n".join([f"{what}, {len(bad)} bad lines:", *shown, *rest, remedy]))
