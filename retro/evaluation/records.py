"""The file of evaluated episodes, a JSON line each: evaluations resume from it, and reports are made from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Digest of everything that decides the arm's episodes; a record with another fingerprint is out of date."""
    episode: Episode
    candidates: tuple[Reflection, ...] = ()
    """Best-of-N: the scored reflections from which the episode's own was chosen."""
    unreflected: str = ""
    """Why the arm could not reflect on this failed episode, and so made no further attempt; otherwise empty."""


class RecordFileError(ValueError):
    """A line is not a record; the message names the file, the line and the remedy."""


class EpisodeRecords:
    """The append-only file of an evaluation's records.

    If a killed process left the last line unfinished, opening the file cuts that line off. A later record of an arm's
    episode replaces the earlier one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _cut_torn_line(path)
        self._records = {_key(record): record for record in read_records(path)}
        self._file = path.open("a", encoding="utf-8")

    def add(self, record: Record) -> None:
        self._file.write(_line(record))
        self._file.flush()
        self._records[_key(record)] = record

    def of(self, arm: str, fingerprint: str) -> list[Record]:
        """The records of an arm with this fingerprint, in order."""
        return [r for r in self.all() if r.arm == arm and r.fingerprint == fingerprint]

    def all(self) -> list[Record]:
        return list(self._records.values())

    def drop_stale(self, current: Mapping[str, str]) -> None:
        """Drop, atomically, the records of arms that have changed since (``current``: arm → fingerprint)."""
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
    """The records of a file, in order. If there are several of one episode, the last one counts (:func:`latest`).

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
    """The last record of each arm's episode, in the order of the first ones."""
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
    return json.dumps(to_json(record), ensure_ascii=False, separators=(",", ":")) + "\n"


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
