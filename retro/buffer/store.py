"""The replay buffer: a tree of episodes in a database, one transaction an episode.

A killed process leaves whole episodes only. SQLite runs in WAL mode with a busy timeout: one process writes while
others read. In PostgreSQL several processes add episodes at once, and a restart of the server loses none.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from sqlalchemy import RowMapping, Select, func, insert, inspect, select
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

FETCHED = 100
"""Rows that are fetched at once. An episode of a long game has some 100 kB, and more when it is decoded."""


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
        with self._cached() as cache, self._engine.execution_options(**ADDING).begin() as connection:
            insert_episode(connection, parent, cache)
            return insert_reflections(connection, parent.id, written)

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

    def groups(self, environments: Sequence[str] = (), splits: Sequence[Split | str] = ()) -> Iterator[Group]:
        """Every failed episode that was retried, ordered by environment, task, trial and id; empty filters: all.

        Retries that an error ended belong to no group: they were not played to their end. The episodes of one task at a
        time are in memory.
        """
        for of_task in self._tasks(environments, splits):
            children: dict[str, list[Episode]] = {}
            for episode in of_task:
                if episode.parent is not None and not episode.broken:
                    children.setdefault(episode.parent, []).append(episode)
            for parent in of_task:
                if (tried := children.get(parent.id)) is not None:
                    yield Group(
                        parent=parent,
                        retries=tuple(sorted((e for e in tried if e.reflection), key=_retry_order)),
                        controls=tuple(sorted((e for e in tried if not e.reflection), key=lambda e: e.id)),
                    )

    def failures(
        self, environments: Sequence[str] = (), splits: Sequence[Split | str] = ()
    ) -> Iterator[tuple[Episode, tuple[Reflection, ...]]]:
        """Every failed episode, retried or not, with the reflections that led to it, its own included, oldest first.

        A root after trial 0 continues trials that are not in the buffer (imported logs): the entries that its actor
        was shown stand for the reflections on those. The episodes of one task at a time are in memory.
        """
        for of_task in self._tasks(environments, splits):
            paths: dict[str, tuple[Reflection, ...]] = {}
            for episode in of_task:
                paths[episode.id] = _path(episode, () if episode.parent is None else paths[episode.parent])
                if episode.failed:
                    yield episode, paths[episode.id]

    def path(self, episode: Episode) -> tuple[Reflection, ...]:
        """The reflections that led to an episode of the buffer, as in :meth:`failures`."""
        above = None if episode.parent is None else self.get(episode.parent)
        return _path(episode, () if above is None else self.path(above))

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
        # By bytes, in both databases: also the order of Python.
        line = (episodes.c.id + " " + episodes.c.digest).label("line")
        query = select(line).order_by(line)
        if environments:
            query = query.where(episodes.c.environment.in_(list(environments)))
        hashed, separator = hashlib.blake2b(digest_size=16), b""
        with self._engine.connect() as connection:
            for text in connection.execution_options(yield_per=FETCHED).execute(query).scalars():
                hashed.update(separator + text.encode())
                separator = b"\n"
        return hashed.hexdigest()

    @reconnecting
    def query(self, statement: Select[Any]) -> Sequence[RowMapping]:
        """All rows of a statement over the tables of :mod:`retro.buffer.schema`: for statistics."""
        with self._engine.connect() as connection:
            return connection.execute(statement).mappings().all()

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
        with self._cached() as cache, self._engine.execution_options(**options).begin() as connection:
            yield lambda episode: insert_episode(connection, episode, cache)

    @contextmanager
    def _cached(self) -> Iterator[ChainMap[tuple[str, str], Task]]:
        """The cache of tasks; what is added in the ``with`` block is forgotten if an error rolls it back."""
        new: dict[tuple[str, str], Task] = {}
        yield ChainMap(new, self._task_cache)
        self._task_cache.update(new)

    def _tasks(self, environments: Sequence[str], splits: Sequence[Split | str]) -> Iterator[list[Episode]]:
        """The episodes of each task, ordered by trial and id."""
        ordered = self._select(environments, splits)
        for _, of_task in groupby(ordered, key=lambda episode: (episode.task.environment, episode.task.id)):
            yield list(of_task)

    def _select(self, environments: Sequence[str], splits: Sequence[Split | str]) -> Iterator[Episode]:
        query = select_episodes()
        if environments:
            query = query.where(episodes.c.environment.in_(list(environments)))
        if splits:
            query = query.where(tasks.c.split.in_([Split(split).value for split in splits]))
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=FETCHED).execute(query).mappings():
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


def _path(episode: Episode, above: tuple[Reflection, ...]) -> tuple[Reflection, ...]:
    """The path of an episode; ``above`` is that of its parent, if it has one."""
    before = _earlier(episode) if episode.parent is None else above
    return before if episode.reflection is None else (*before, episode.reflection)


def _earlier(root: Episode) -> tuple[Reflection, ...]:
    return tuple(Reflection(text, source="import") for text in root.recalled.entries) if root.trial > 0 else ()


def _retry_order(episode: Episode) -> tuple[str, int, str]:
    reflection = episode.reflection
    return (reflection.source, reflection.index, episode.id) if reflection else ("", 0, episode.id)
