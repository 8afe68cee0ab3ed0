"""The replay buffer: a tree of episodes in a database, one transaction an episode.

A killed process leaves whole episodes only. SQLite runs in WAL mode with a busy timeout: one process writes while
others read. In PostgreSQL several processes add episodes at once, and a restart of the server loses none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy import func, insert, inspect, select
from sqlalchemy.schema import CreateSchema

from retro.buffer.engine import ADDING, WRITING, ReplayBufferError, open_engine, reconnecting, use_wal
from retro.buffer.insertion import insert_episode, insert_reflections, task_named
from retro.buffer.schema import (
    SCHEMA_VERSION,
    episodes,
    metadata,
    reflections,
    schema_info,
    schema_version,
    select_episodes,
    tasks,
    to_episode,
    to_reflection,
    unreadable,
)
from retro.types import Episode, Reflection, Split, Task


@dataclass(frozen=True, slots=True)
class Group:
    """A failed episode and what was tried next: what a rating compares."""

    parent: Episode
    retries: tuple[Episode, ...]
    """Each with its reflection, ordered by source, index and id; without those that an error ended."""
    controls: tuple[Episode, ...]
    """The retries without a reflection, in the order of their ids."""


class ReplayBuffer:
    """Episodes by id, and the tree that they form.

    Args:
        url: ``sqlite:///runs/NAME/buffer.sqlite``, or ``postgresql+psycopg://host/database?schema=NAME``.
        create: Whether to make a file or a schema that does not exist yet; otherwise that is an error.

    Raises:
        ReplayBufferError: if the URL is malformed, its driver is missing, the database can't be opened, or it holds
            another version of the schema, or no replay buffer.
    """

    def __init__(self, url: str, create: bool = True) -> None:
        self.url = url
        self._engine = open_engine(url, create)
        self._task_cache: dict[tuple[str, str], Task] = {}
        try:
            self._prepare(create)
        except ReplayBufferError:
            self._engine.dispose()
            raise

    @reconnecting
    def add(self, episode: Episode) -> None:
        """Store ``episode`` in one transaction; adding the same one again changes nothing.

        If a PostgreSQL server restarts meanwhile, this waits for it and adds the episode then.

        Raises:
            EpisodeRefusedError: if another episode has this id, its parent is missing or did not fail, its task is in
                the buffer with another split or kind, or it holds a value that cannot be stored.
            ReplayBufferError: if the database cannot be written.
        """
        with self._transaction(ADDING) as add:
            add(episode)

    @reconnecting
    def add_reflections(self, parent: Episode, written: Sequence[Reflection]) -> list[str]:
        """Store a failed episode and reflections on it that nobody has used yet, in one transaction; return their ids.

        An id is made of the content, so equal reflections on the same episode share one. A reflection becomes part of
        the tree, of exports and of the digest with the first retry that names it.

        Raises:
            EpisodeRefusedError: see :meth:`add`.
            ReplayBufferError: if the database cannot be written.
        """
        cache = dict(self._task_cache)
        with self._engine.execution_options(**ADDING).begin() as connection:
            insert_episode(connection, parent, cache)
            ids = insert_reflections(connection, parent.id, written)
        self._task_cache = cache
        return ids

    @contextmanager
    def transaction(self) -> Iterator[Callable[[Episode], bool]]:
        """Several episodes or none: yields ``add(episode) -> bool`` (False: it was there already).

        ``add`` raises :class:`EpisodeRefusedError` and leaves nothing of the episode, so a caller may catch that and go
        on with the next one. Any error that leaves the ``with`` block undoes everything. Other writers wait meanwhile.
        """
        with self._transaction(WRITING) as add:
            yield add

    @reconnecting
    def get(self, id: str) -> Episode | None:
        """The episode with an id, or None. Raises ReplayBufferError if its row is damaged."""
        with self._engine.connect() as connection:
            row = connection.execute(select_episodes().where(episodes.c.id == id)).mappings().first()
        return None if row is None else to_episode(row)

    @reconnecting
    def reflection(self, id: str) -> tuple[str, Reflection] | None:
        """The id of the episode that a reflection is about, and the reflection, used or not; None if there is none."""
        with self._engine.connect() as connection:
            row = connection.execute(select(reflections).where(reflections.c.id == id)).mappings().first()
        return None if row is None else (row["parent"], to_reflection(row))

    @reconnecting
    def task(self, environment: str, id: str) -> Task | None:
        """The task with this name, or None."""
        with self._engine.connect() as connection:
            return task_named(connection, environment, id)

    def episodes(self, environment: str | None = None, split: Split | str | None = None) -> Iterator[Episode]:
        """All episodes, ordered by environment, task, trial and id: parents come before their children."""
        return self._select([environment] if environment else [], [split] if split else [])

    def groups(self, environments: Sequence[str] = (), splits: Sequence[Split | str] = ()) -> list[Group]:
        """Every failed episode that was retried, ordered by environment, task, trial and id; empty filters: all.

        Retries that an error ended belong to no group: they were not played to their end.
        """
        parents: dict[str, Episode] = {}
        children: dict[str, list[Episode]] = {}
        for episode in self._select(environments, splits):
            parents[episode.id] = episode
            if episode.parent is not None and not episode.broken:
                children.setdefault(episode.parent, []).append(episode)
        return [
            Group(
                parent=parent,
                retries=tuple(sorted((e for e in children[id] if e.reflection), key=_retry_order)),
                controls=tuple(sorted((e for e in children[id] if not e.reflection), key=lambda e: e.id)),
            )
            for id, parent in parents.items()
            if id in children
        ]

    def failures(
        self, environments: Sequence[str] = (), splits: Sequence[Split | str] = ()
    ) -> Iterator[tuple[Episode, tuple[Reflection, ...]]]:
        """Every failed episode, retried or not, with the reflections that led to it, its own included, oldest first.

        A root after trial 0 continues trials that are not in the buffer (imported logs): the entries that its actor
        was shown stand for the reflections on those.
        """
        paths: dict[str, tuple[Reflection, ...]] = {}
        for episode in self._select(environments, splits):
            above = _earlier(episode) if episode.parent is None else paths[episode.parent]
            paths[episode.id] = above if episode.reflection is None else (*above, episode.reflection)
            if episode.failed:
                yield episode, paths[episode.id]

    @reconnecting
    def count(self) -> int:
        """How many episodes there are."""
        with self._engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(episodes)) or 0

    @reconnecting
    def environments(self) -> list[str]:
        """The environments of the episodes, in alphabetical order."""
        with self._engine.connect() as connection:
            return sorted(str(name) for name in connection.scalars(select(episodes.c.environment).distinct()))

    @reconnecting
    def digest(self, environments: Sequence[str] = ()) -> str:
        """32 hexadecimal digits that name the whole content; the order in which it was added does not matter."""
        query = select(episodes.c.id, episodes.c.digest).order_by(episodes.c.id)
        if environments:
            query = query.where(episodes.c.environment.in_(list(environments)))
        with self._engine.connect() as connection:
            # Sorted here too: databases differ in how they collate text.
            lines = sorted(f"{id} {digest}" for id, digest in connection.execute(query))
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()

    def __str__(self) -> str:
        return self._engine.url.render_as_string()  # without the password

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self, options: dict[str, str]) -> Iterator[Callable[[Episode], bool]]:
        cache = dict(self._task_cache)
        with self._engine.execution_options(**options).begin() as connection:
            yield lambda episode: insert_episode(connection, episode, cache)
        self._task_cache = cache

    def _select(self, environments: Sequence[str], splits: Sequence[Split | str]) -> Iterator[Episode]:
        query = select_episodes()
        if environments:
            query = query.where(episodes.c.environment.in_(list(environments)))
        if splits:
            query = query.where(tasks.c.split.in_([Split(split).value for split in splits]))
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query).mappings():
                yield to_episode(row)

    def _prepare(self, create: bool) -> None:
        with self._engine.connect() as connection:
            version = schema_version(connection)
        if version is None and create:
            version = self._create()
        if version != SCHEMA_VERSION:
            raise unreadable(str(self), version)
        use_wal(self._engine)

    def _create(self) -> int | None:
        """Make the namespace and the tables, and return their version; another process may have made them first."""
        with self._engine.execution_options(**WRITING).begin() as connection:
            version = schema_version(connection)
            if version is None:
                present = inspect(connection).get_table_names()
                if set(present) & set(metadata.tables) or (present and connection.dialect.name == "sqlite"):
                    raise ReplayBufferError(
                        f"replay buffer {self}: not a replay buffer, but a database with the tables "
                        f"{', '.join(sorted(present))}; give the buffer one of its own"
                    )
                schema = connection.engine.url.query.get("schema")
                if schema is not None and not inspect(connection).has_schema(str(schema)):
                    connection.execute(CreateSchema(str(schema)))
                metadata.create_all(connection)
                connection.execute(insert(schema_info).values(version=SCHEMA_VERSION))
                return SCHEMA_VERSION
        return version


def _earlier(root: Episode) -> tuple[Reflection, ...]:
    return tuple(Reflection(text, source="import") for text in root.recalled.entries) if root.trial > 0 else ()


def _retry_order(episode: Episode) -> tuple[str, int, str]:
    reflection = episode.reflection
    return (reflection.source, reflection.index, episode.id) if reflection else ("", 0, episode.id)
