"""Every evaluated episode, a JSON line each, as it happens: evaluations resume from it, reports are rebuilt from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retro.reading import parse_json, problems, read_lines
from retro.types import Episode, Reflection, from_json, to_json

FORMAT = 2
"""Of the records and of ``results.json``; it is part of every arm's fingerprint. Since 2, an episode says what its
actor was shown, and the results keep the arms' parts."""


@dataclass(frozen=True, slots=True)
class Record:
    """One episode of one arm."""

    arm: str
    fingerprint: str
    """Digest of all that decides the arm's episodes; a record of another fingerprint is out of date."""
    episode: Episode
    candidates: tuple[Reflection, ...] = ()
    """The reflections among which the episode's one was chosen (Best-of-N), with their scores."""
    unreflected: str = ""
    """Why the arm could not reflect on the episode, and so made no further attempt; empty if it could, or need not."""


class RecordFileError(ValueError):
    """A line of the records that is not one of ours: names the file, the line and the remedy."""


class EpisodeRecords:
    """The append-only file of an evaluation's records.

    A line that a killed process left unfinished at the end of the file is cut off when the file is opened. A later
    record of an episode of the same arm stands for the earlier one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._records = {_key(record): record for record in latest(read_records(path))} if path.exists() else {}
        self._file = path.open("a", encoding="utf-8")

    def add(self, record: Record) -> None:
        self._file.write(_line(record))
        self._file.flush()
        self._records[_key(record)] = record

    def of(self, arm: str, fingerprint: str) -> list[Record]:
        """What was recorded of an arm as it is now, in order."""
        return [r for r in self.all() if r.arm == arm and r.fingerprint == fingerprint]

    def all(self) -> list[Record]:
        return list(self._records.values())

    def drop_stale(self, current: Mapping[str, str]) -> None:
        """Drop, atomically, what was recorded of an arm when it was another one (``current``: arm → fingerprint)."""
        kept = {key: r for key, r in self._records.items() if current.get(r.arm, r.fingerprint) == r.fingerprint}
        if len(kept) == len(self._records):
            return
        self.close()
        self._records = kept
        temporary = self.path.with_name(self.path.name + ".part")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, self._records.values()))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EpisodeRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in order; of an episode there may be several, of which the last counts.

    Raises:
        RecordFileError: naming the line that is not a record.
    """
    for number, line in read_lines(path):
        try:
            yield from_json(Record, parse_json(line))
        except ValueError as error:
            why = problems(error) if isinstance(error, ValidationError) else error
            raise RecordFileError(f"{path}, line {number}: not an evaluation record ({why}); delete the line") from None


def latest(records: Iterable[Record]) -> list[Record]:
    """The last record of each episode of an arm, in the order of the first ones."""
    return list({_key(record): record for record in records}.values())


def _key(record: Record) -> tuple[str, str, str]:
    return record.arm, record.fingerprint, record.episode.id


def chains(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of one arm by task id, in the order of their trials."""
    by_task: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.episode.trial):
        by_task.setdefault(record.episode.task.id, []).append(record)
    return by_task


def _line(record: Record) -> str:
    value: dict[str, Any] = to_json(record)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
