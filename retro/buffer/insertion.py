"""Adds an episode to the tree: inserts its rows unless they are there, and refuses what contradicts the buffer.

Several writers may add at once. An insert that conflicts changes nothing; what is there is then read and compared.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from retro.buffer.engine import EpisodeRefusedError, UnstorableError
from retro.buffer.lines import read_back
from retro.buffer.schema import (
    content_digest,
    episode_row,
    episodes,
    reflection_row,
    reflections,
    task_row,
    tasks,
)
from retro.types import Episode, Reflection, Split, StopReason, Task, to_json

# Built once: making a statement takes longer than running it.
_DIGEST_OF = select(episodes.c.digest).where(episodes.c.id == bindparam("wanted"))
_TASK_OF = select(tasks).where(tasks.c.environment == bindparam("environment"), tasks.c.id == bindparam("wanted"))
_PARENT_OF = select(
    episodes.c.environment, episodes.c.task, episodes.c.trial, episodes.c.success, episodes.c.stop
).where(episodes.c.id == bindparam("wanted"))
_INSERTS = {
    (dialect, table): insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    for dialect, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
    for table in (tasks, reflections, episodes)
}


def insert_episode(connection: Connection, episode: Episode, task_cache: MutableMapping[tuple[str, str], Task]) -> bool:
    """Add an episode; False if it is there already. ``task_cache`` caches the tasks' rows.

    Raises:
        EpisodeRefusedError: if it contradicts the buffer, or cannot be stored. Nothing of it is written then.
    """
    episode = read_back(episode)
    try:
        with connection.begin_nested():
            added = _insert(connection, episode, task_cache)
    except UnstorableError as error:
        raise EpisodeRefusedError(f"episode {episode.id!r}: {error}") from None
    task_cache[episode.task.environment, episode.task.id] = episode.task
    return added


def insert_reflections(connection: Connection, parent: str, written: Sequence[Reflection]) -> list[str]:
    """Add reflections on the episode ``parent``, which is there, unless they are there already; their ids in order.

    Raises:
        EpisodeRefusedError: if one of them cannot be stored. Nothing is written then.
    """
    rows = [reflection_row(parent, to_json(reflection)) for reflection in written]
    try:
        with connection.begin_nested():
            for row in rows:
                _inserts(connection, reflections, row)
    except UnstorableError as error:
        raise EpisodeRefusedError(f"reflections on episode {parent!r}: {error}") from None
    return [row["id"] for row in rows]


def task_named(connection: Connection, environment: str, id: str) -> Task | None:
    """The task with this name, if the buffer has it."""
    row = connection.execute(_TASK_OF, {"environment": environment, "wanted": id}).mappings().first()
    return None if row is None else Task(row["environment"], row["id"], Split(row["split"]), row["kind"])


def _insert(connection: Connection, episode: Episode, task_cache: MutableMapping[tuple[str, str], Task]) -> bool:
    tree = to_json(episode)
    digest = content_digest(tree)
    if task_cache.get((episode.task.environment, episode.task.id)) != episode.task:
        _insert_task(connection, episode)
    reflection, reflection_id = None, None
    if episode.parent is not None:
        _check_parent(connection, episode, episode.parent)
        if episode.reflection is not None:
            reflection = reflection_row(episode.parent, tree["reflection"])
            reflection_id = reflection["id"]
    elif episode.reflection is not None:
        raise EpisodeRefusedError(f"episode {episode.id!r}: it has a reflection but no parent; name the failed episode")
    if not _inserts(connection, episodes, episode_row(tree, reflection_id, digest)):
        if connection.scalar(_DIGEST_OF, {"wanted": episode.id}) != digest:
            raise EpisodeRefusedError(
                f"episode {episode.id!r}: the buffer holds another one with this id; give each its own"
            )
        return False
    if reflection is not None:
        _inserts(connection, reflections, reflection)
    return True


def _inserts(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert ``row``; False if there is one with its key."""
    return connection.execute(_INSERTS[connection.dialect.name, table], row).rowcount > 0


def _insert_task(connection: Connection, episode: Episode) -> None:
    task = episode.task
    if _inserts(connection, tasks, task_row(task)):
        return
    row = connection.execute(_TASK_OF, {"environment": task.environment, "wanted": task.id}).mappings().one()
    if (row["split"], row["kind"]) != (task.split.value, task.kind):
        raise EpisodeRefusedError(
            f"episode {episode.id!r}: the buffer has task {task.id!r} of {task.environment} as {row['split']} "
            f"(kind {row['kind']!r}), not {task.split.value} (kind {task.kind!r}); a task has one split and one kind"
        )


def _check_parent(connection: Connection, episode: Episode, parent: str) -> None:
    row = connection.execute(_PARENT_OF, {"wanted": parent}).mappings().first()
    if row is None:
        raise EpisodeRefusedError(f"episode {episode.id!r}: its parent {parent!r} is not in the buffer; add that first")
    if (row["environment"], row["task"]) != (episode.task.environment, episode.task.id):
        raise EpisodeRefusedError(
            f"episode {episode.id!r}: its parent {parent!r} played another task ({row['task']!r})"
        )
    if row["success"] or row["stop"] in (StopReason.ACTOR_ERROR, StopReason.ENVIRONMENT_ERROR):
        raise EpisodeRefusedError(
            f"episode {episode.id!r}: its parent {parent!r} ended by {row['stop']}; only a failed episode is retried"
        )
    if row["trial"] >= episode.trial:
        raise EpisodeRefusedError(
            f"episode {episode.id!r}: trial {episode.trial} must come after its parent's trial {row['trial']}"
        )
