"""How the database of a URL is opened: SQLite in WAL mode with a busy timeout, or PostgreSQL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, Engine, ExceptionContext, StaticPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError

from retro.buffer.postgresql import DRIVER, postgresql_engine, problem_with_namespace
from retro.database_url import has_password, without_password
from retro.reading import UnreadableError, parse_json

WAIT_SECONDS = 60
"""How long to wait for another writer, and for a server that restarts."""
TRIES = 5

WRITING = {"lock": "exclusive"}
"""Execution options of a connection that writes while no other one does."""
ADDING = {"lock": "shared"}
"""Execution options of a connection that adds one episode: in PostgreSQL several do so at once."""

_SUPPORTED = ("sqlite", "sqlite+pysqlite", "postgresql", f"postgresql+{DRIVER}")
"""How a URL begins. Each database has one driver here, so a URL need not name it."""
_LOCK_NOT_AVAILABLE = "55P03"

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class ReplayBufferError(ValueError):
    """The buffer can't be opened or an episode can't be added: the message names it, and the remedy."""


class EpisodeRefusedError(ReplayBufferError):
    """An episode that can't be added: it contradicts the buffer, or holds a value that it cannot express."""


class UnstorableError(ReplayBufferError):
    """A value for which the database has no room, such as a zero character in PostgreSQL."""


class ConnectionLostError(ReplayBufferError):
    """The server ended the connection. The transaction that was open may have been carried out, or not."""


def database_url(url: str) -> URL:
    """The parts of a URL that names SQLite or PostgreSQL. Nothing is opened.

    Raises:
        ReplayBufferError: if it is malformed, holds a password or names no namespace, or if its driver is missing.
    """
    shown = without_password(url)
    if has_password(url):
        raise ReplayBufferError(
            f"replay buffer {shown}: take the password out of the URL: PostgreSQL reads it from PGPASSWORD or ~/.pgpass"
        )
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ReplayBufferError(
            f"replay buffer {shown!r}: not a database URL; write it like sqlite:///path/to/buffer.sqlite"
        ) from None
    if parsed.drivername not in _SUPPORTED:
        raise ReplayBufferError(
            f"replay buffer {shown}: a buffer is in SQLite (sqlite:///path) or in PostgreSQL "
            f"(postgresql+{DRIVER}://host/database), not in {parsed.drivername}"
        )
    if parsed.get_backend_name() == "postgresql":
        if find_spec(DRIVER) is None:
            raise ReplayBufferError(f"replay buffer {shown}: it needs {DRIVER}: pip install 'retro[postgres]'")
        problem = problem_with_namespace(parsed)
        if problem is not None:
            raise ReplayBufferError(f"replay buffer {shown}: {problem}")
    return parsed


def open_engine(url: str, create: bool) -> Engine:
    """The engine of a database URL; a missing SQLite file is made if ``create``, otherwise it is an error.

    Raises:
        ReplayBufferError: from :func:`database_url`, or if the file is missing.
    """
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = _sqlite_engine(parsed, create)
    else:
        try:
            engine = postgresql_engine(parsed, WAIT_SECONDS, json_deserializer=_read_json)
        except ImportError as error:  # psycopg without the library that it calls
            raise ReplayBufferError(
                f"replay buffer {parsed.render_as_string()}: {_one_line(error)}; pip install 'retro[postgres]'"
            ) from None
    event.listen(engine, "handle_error", _report)
    return engine


def _sqlite_engine(url: URL, create: bool) -> Engine:
    arguments: dict[str, Any] = {"connect_args": {"timeout": WAIT_SECONDS}, "json_deserializer": _read_json}
    if url.database in (None, "", ":memory:"):
        arguments["poolclass"] = StaticPool
    else:
        path = Path(str(url.database))
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise ReplayBufferError(f"replay buffer {path}: no such file; collect or import episodes into it first")
    engine = create_engine(url, **arguments)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def reconnecting(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that is called again if the server ended the connection; twice must be the same as once."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(TRIES - 1):
            try:
                return method(self, *args, **kwargs)
            except ConnectionLostError:
                pass
        return method(self, *args, **kwargs)

    return call


def _one_line(error: BaseException | None) -> str:
    """The message of an error of the driver, which may have several lines."""
    return " ".join(str(error).split())


def _read_json(text: str) -> Any:
    """The value, or the error; the code that reads the row raises it with the episode's name."""
    try:
        return parse_json(text)
    except UnreadableError as error:
        return error


def _report(context: ExceptionContext) -> ReplayBufferError | None:
    """Turn an error of the database (not a database, damaged, locked, full) into our own."""
    error = context.sqlalchemy_exception
    if not isinstance(error, DBAPIError) or context.engine is None:
        return None
    said = _one_line(context.original_exception)
    if isinstance(error, DataError):
        return UnstorableError(f"cannot be stored: {said}")
    problem = f"replay buffer {context.engine.url.render_as_string()}: {said}; "
    if context.is_disconnect:
        return ConnectionLostError(f"{problem}the connection to the server was lost: run the same command again")
    if getattr(context.original_exception, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
        return ReplayBufferError(
            f"{problem}another process writes for more than {WAIT_SECONDS} s: run the same command again"
        )
    if context.connection is None and context.dialect.name == "postgresql":
        return ReplayBufferError(
            f"{problem}check the URL, that the server runs, and the password in PGPASSWORD or ~/.pgpass"
        )
    return ReplayBufferError(
        f"{problem}check that it is a replay buffer, that it is whole, and that you may write to it"
    )


def _set_pragmas(connection: Any, record: Any) -> None:
    # The driver must not begin transactions by itself: _begin says which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}")
    # In WAL mode NORMAL loses nothing when a process dies; only a power cut may take back the last transactions.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def use_wal(engine: Engine) -> None:
    """Switch SQLite to its write-ahead log, for good: one process can write while others read."""
    if engine.dialect.name == "sqlite":
        until = time.monotonic() + WAIT_SECONDS
        with closing(engine.raw_connection()) as connection:
            while not _switched_to_wal(connection.cursor(), until):
                time.sleep(0.02)


def _switched_to_wal(cursor: Any, until: float) -> bool:
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:  # SQLite waits for other writers, but not for another one that switches
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
            raise
        return False
    return True


def _begin(connection: Connection) -> None:
    # A writer takes the lock at once. If it read first and another process wrote in between, it would fail, not wait.
    kind = "IMMEDIATE" if "lock" in connection.get_execution_options() else "DEFERRED"
    connection.exec_driver_sql(f"BEGIN {kind}")
