"""Answers that were given before, in a SQLite file: an equal request at temperature 0 is not sent again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import weakref
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retro.config import ConfigError
from retro.reading import UnreadableError, parse_json, problems
from retro.types import Completion, from_json, to_json
from retro.wire.answers import MOST_TOKENS, readable

_LOCK_SECONDS = 60.0
"""How long another process may be writing."""


def request_key(url: str, body: Mapping[str, Any]) -> str:
    """The SHA-256 of a request: where it goes to and all that it says, in whatever order. The key is no part of it."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()


class ResponseCache:
    """Completions by :func:`request_key`. A disk that is slow stops no other call: one thread of its own reads and
    writes, and what arrives meanwhile is its next transaction. Several processes may share a file.

    Raises:
        ConfigError: if ``path`` cannot be opened, or is something else.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)
            self._finalizer = weakref.finalize(self, connection.close)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:  # another process is doing this to a new file
                    raise
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, completion TEXT NOT NULL)"
            )
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"actor.cache {path}: {error}; name a file that a cache wrote, or one that is not there yet"
            ) from None
        self._path = path
        self._connection = connection
        self._unwritten: deque[tuple[str, str]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-cache")

    async def get(self, key: str) -> Completion | None:
        """The completion of an equal request, if there was one."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, key)

    async def put(self, key: str, completion: Completion) -> None:
        """Keep a completion; once this returns, killing the process does not lose it. The first one of a key stays."""
        self._unwritten.append((key, json.dumps(to_json(completion))))
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write)

    def close(self) -> None:
        """Finish what is being written, and close the file."""
        self._thread.shutdown()
        self._finalizer()

    def _read(self, key: str) -> Completion | None:
        try:
            row = self._connection.execute("SELECT completion FROM completions WHERE key = ?", (key,)).fetchone()
            return None if row is None else _completion(row[0])
        except (sqlite3.Error, UnreadableError, ValidationError) as error:
            reason = problems(error) if isinstance(error, ValidationError) else str(error)
            raise ConfigError(
                f"actor.cache {self._path}: damaged (answer {key[:8]}: {reason}); delete the file, and its answers are "
                "asked for again"
            ) from None

    def _write(self) -> None:
        """Write what is unwritten, if an earlier call has not done so: after it the caller's entry is there."""
        rows = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
        if not rows:
            return
        try:
            with self._connection:  # commits, or rolls back
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT OR IGNORE INTO completions VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._unwritten.extendleft(reversed(rows))  # those who wait for them try again, or are told, too
            raise ConfigError(f"actor.cache {self._path}: {error}") from None


def _completion(row: Any) -> Completion:
    if not isinstance(row, str):
        raise UnreadableError("not text")
    kept = from_json(Completion, parse_json(row))
    if not all(0 <= count <= MOST_TOKENS for count in (kept.usage.prompt_tokens, kept.usage.completion_tokens)):
        raise UnreadableError("its usage is not two numbers of tokens")
    return replace(kept, text=readable(kept.text))  # a version before this one may have kept what it hides
