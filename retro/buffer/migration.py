"""Brings a buffer of an earlier schema up to date, in place and in one transaction."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, bindparam, select, text, update

from retro.buffer.engine import WRITING, open_engine
from retro.buffer.recalled import WINDOW, Derivation
from retro.buffer.schema import (
    SCHEMA_VERSION,
    content_digest,
    episodes,
    metadata,
    schema_info,
    schema_version,
    select_episodes,
    tasks,
    to_episode,
    unreadable,
)
from retro.types import to_json

_ADD_RECALLED = text("""ALTER TABLE episodes ADD COLUMN recalled JSON NOT NULL DEFAULT '{"entries": [], "ids": []}'""")
_SET = (
    update(episodes)
    .where(episodes.c.id == bindparam("wanted"))
    .values(recalled=bindparam("recalled"), info=bindparam("info"), digest=bindparam("digest"))
)


def migrate(url: str, window: int = WINDOW) -> int:
    """Bring the buffer at ``url`` to :data:`SCHEMA_VERSION`; return how many episodes were rewritten.

    Version 1 did not record what an actor was shown. :class:`Derivation` fills it in, so that training reads the same
    prompts as before under ``memory.size = window``.

    Raises:
        ReplayBufferError: if it is damaged, of an unknown version, or not a replay buffer. Nothing is changed then.
    """
    engine = open_engine(url, create=False)
    try:
        with engine.execution_options(**WRITING).begin() as connection:
            version = schema_version(connection)
            if version == SCHEMA_VERSION:
                return 0
            if version != 1:
                raise unreadable(engine.url.render_as_string(), version)
            connection.execute(_ADD_RECALLED)
            if connection.dialect.name == "postgresql":
                _set_types(connection)
            found = connection.execute(select(tasks)).mappings().all()
            rewritten = sum(_derive(connection, task, window) for task in found)
            connection.execute(update(schema_info).values(version=SCHEMA_VERSION))
            return rewritten
    finally:
        engine.dispose()


def _set_types(connection: Connection) -> None:
    """Give all columns the types of :mod:`retro.buffer.schema`, which in SQLite are only names.

    Version 1 limited the length of texts in PostgreSQL, and left their order to the server's locale.
    """
    quote = connection.dialect.identifier_preparer.quote
    for table in metadata.sorted_tables:
        types = [f"ALTER {quote(column.name)} TYPE {column.type.compile(connection.dialect)}" for column in table.c]
        connection.exec_driver_sql(f"ALTER TABLE {quote(table.name)} {', '.join(types)}")


def _derive(connection: Connection, task: RowMapping, window: int) -> int:
    """Rewrite the episodes of one task. Their parents are episodes of the same task."""
    of_task = (episodes.c.environment == task["environment"]) & (episodes.c.task == task["id"])
    rows = connection.execute(select_episodes().where(of_task)).mappings().all()
    recorded = {episode.id: episode for episode in map(to_episode, rows)}
    derivation = Derivation(window, recorded.get)
    for episode in map(derivation, recorded.values()):
        tree = to_json(episode)
        values = {"recalled": tree["recalled"], "info": tree["info"], "digest": content_digest(tree)}
        connection.execute(_SET, {"wanted": episode.id, **values})
    return len(recorded)
