"""A buffer in PostgreSQL: its namespace, the locks of its writers, and what happens when the server restarts."""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event

DRIVER = "psycopg"
LONGEST_NAME = 63
"""In bytes. PostgreSQL cuts longer names, so two of them could become one."""

_LONGEST_PAUSE = 2.0
_LOCKS = {
    kind: f"SELECT pg_advisory_xact_lock{suffix}(hashtextextended(%s, 0))"
    for kind, suffix in (("exclusive", ""), ("shared", "_shared"))
}

logger = logging.getLogger(__name__)


def problem_with_namespace(url: URL) -> str | None:
    """Why the ``schema`` in ``url`` cannot be a buffer's namespace; None if it can."""
    name = url.query.get("schema")
    if not isinstance(name, str) or not name:
        return "name the buffer's namespace in the database: …?schema=NAME (for a run, by default its name)"
    if len(name.encode()) > LONGEST_NAME:
        return f"the namespace {name!r} is longer than {LONGEST_NAME} bytes; give it a shorter name: …?schema=NAME"
    if name.startswith("pg_") or name == "information_schema" or "\0" in name:
        return f"the namespace {name!r} is PostgreSQL's own; give the buffer another one: …?schema=NAME"
    return None


def postgresql_engine(url: URL, wait_seconds: float, **arguments: Any) -> Engine:
    """The engine of a checked URL, which connects when it is first used.

    The schema in the URL is the only one that its connections see. A statement waits ``wait_seconds`` for another
    writer's lock. The first connection must succeed at once; later ones wait as long for a server that restarts.
    """
    schema = str(url.query["schema"])
    # If an insert finds the row of another writer, it must see that row: the level at which each statement does.
    engine = create_engine(
        url.set(drivername=f"postgresql+{DRIVER}"), pool_pre_ping=True, isolation_level="READ COMMITTED", **arguments
    )
    connected = False

    def connect(dialect: Dialect, record: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        nonlocal connected
        named = {key: value for key, value in named.items() if key != "schema"}
        until, pause = time.monotonic() + wait_seconds, 0.1
        while True:
            try:
                connection = dialect.connect(*positional, **named)
            except dialect.loaded_dbapi.OperationalError:
                if not connected or time.monotonic() + pause > until:
                    raise
                if pause == 0.1:
                    logger.warning(
                        "replay buffer %s: its server does not answer; waiting up to %g s",
                        *(engine.url.render_as_string(), wait_seconds),
                    )
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                connected = True
                return connection

    def prepare(connection: Any, record: Any) -> None:
        quoted = '"' + schema.replace('"', '""') + '"'
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('search_path', %s, false), set_config('lock_timeout', %s, false)",
                (quoted, f"{wait_seconds:g}s"),
            )
        connection.commit()

    def lock(connection: Connection) -> None:
        kind = connection.get_execution_options().get("lock")
        if kind is not None:
            connection.exec_driver_sql(_LOCKS[kind], (f"retro buffer {schema}",))

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", prepare, insert=True)  # before SQLAlchemy asks for the schema
    event.listen(engine, "begin", lock)
    return engine
