"""How the database is opened: SQLite in WAL mode with a busy timeout, or whatever the URL names."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, StaticPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from retro.reading import UnreadableError, parse_json

BUSY_TIMEOUT_SECONDS = 60

WRITING = {"sqlite_begin": "IMMEDIATE"}
"""Execution options of a connection that will write."""


class ReplayBufferError(ValueError):
    """The buffer can't be opened or an episode can't be added: the message names it, and the remedy."""


class EpisodeRefusedError(ReplayBufferError):
    """An episode that can't be added: it contradicts the buffer, or holds a value that JSON cannot express."""


def open_engine(url: str, create: bool) -> Engine:
    """The engine of a database URL; a missing SQLite file is made if ``create``, otherwise it is an error.

    Raises:
        ReplayBufferError: if the URL is malformed, its driver is missing, or the file is.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ReplayBufferError(
            f"replay buffer {url!r}: not a database URL; write it like sqlite:///path/to/buffer.sqlite"
        ) from None
    sqlite = parsed.get_backend_name() == "sqlite"
    in_memory = sqlite and parsed.database in (None, "", ":memory:")
    if sqlite and not in_memory:
        path = Path(str(parsed.database))
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise ReplayBufferError(f"replay buffer {path}: no such file; collect or import episodes into it first")
    arguments: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}} if sqlite else {}
    arguments["json_deserializer"] = _read_json
    if in_memory:
        arguments["poolclass"] = StaticPool
    try:
        engine = create_engine(parsed, **arguments)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ReplayBufferError(
            f"replay buffer {parsed.render_as_string()}: {error}; install the database's Python driver or use sqlite:///…"
        ) from None
    event.listen(engine, "handle_error", _report)
    if sqlite:
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin)
    return engine


def _read_json(text: str) -> Any:
    """The value, or the error; the code that reads the row raises it with the episode's name."""
    try:
        return parse_json(text)
    except UnreadableError as error:
        return error


def _report(context: ExceptionContext) -> ReplayBufferError | None:
    """Turn an error of the database (not a database, damaged, locked, full) into our own. A violated constraint stays
    as it is: two writers added the same row, and one of them tries again."""
    error = context.sqlalchemy_exception
    if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError) or context.engine is None:
        return None
    return ReplayBufferError(
        f"replay buffer {context.engine.url.render_as_string()}: {context.original_exception}; check that it is a "
        "replay buffer, that it is whole, and that you may write to it"
    )


def _set_pragmas(connection: Any, record: Any) -> None:
    # The driver must not begin transactions by itself: _begin says which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")
    # In WAL mode NORMAL loses nothing when a process dies; only a power cut may take back the last transactions.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def use_wal(engine: Engine) -> None:
    """Switch SQLite to its write-ahead log, for good: one process can write while others read."""
    if engine.dialect.name == "sqlite":
        with closing(engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA journal_mode = WAL")


def _begin(connection: Connection) -> None:
    # A writer takes the lock at once. If it read first and another process wrote in between, it would fail, not wait.
    kind = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {kind}")
