"""Checks an episode before it is added to the tree, and writes its rows."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, insert, select

from retro.buffer.engine import EpisodeRefusedError
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
from retro.types import Episode, Split, StopReason, Task, to_json

# Built once: making a statement takes longer than running it.
_DIGEST_OF = select(episodes.c.digest).where(episodes.c.id == bindparam("wanted"))
_TASK_OF = select(tasks).where(tasks.c.environment == bindparam("environment"), tasks.c.id == bindparam("wanted"))
_PARENT_OF = select(
    episodes.c.environment, episodes.c.task, episodes.c.trial, episodes.c.success, episodes.c.stop
).where(episodes.c.id == bindparam("wanted"))
_REFLECTION_OF = select(reflections.c.id).where(reflections.c.id == bindparam("wanted"))
_INSERT_TASK, _INSERT_REFLECTION, _INSERT_EPISODE = insert(tasks), insert(reflections), insert(episodes)


def insert_episode(connection: Connection, episode: Episode, task_cache: dict[tuple[str, str], Task]) -> bool:
    """Check an episode, then write it; False if it is there already. ``task_cache`` caches the tasks' rows.

    Raises:
        EpisodeRefusedError: before anything is written.
    """
    episode = read_back(episode)
    tree = to_json(episode)
    digest = content_digest(tree)
    present = connection.scalar(_DIGEST_OF, {"wanted": episode.id})
    if present == digest:
        return False
    if present is not None:
        raise EpisodeRefusedError(
            f"episode {episode.id!r}: the buffer holds another one with this id; give each its own"
        )
    task_is_new = _check_task(connection, episode, task_cache)
    if episode.parent is not None:
        _check_parent(connection, episode, episode.parent)
    elif episode.reflection is not None:
        raise EpisodeRefusedError(f"episode {episode.id!r}: it has a reflection but no parent; name the failed episode")

    if task_is_new:
        connection.execute(_INSERT_TASK, task_row(episode.task))
    reflection_id = None
    if episode.reflection is not None and episode.parent is not None:
        row = reflection_row(episode.parent, tree["reflection"])
        reflection_id = row["id"]
        if connection.scalar(_REFLECTION_OF, {"wanted": reflection_id}) is None:
            connection.execute(_INSERT_REFLECTION, row)
    connection.execute(_INSERT_EPISODE, episode_row(tree, reflection_id, digest))
    task_cache[episode.task.environment, episode.task.id] = episode.task
    return True


def _check_task(connection: Connection, episode: Episode, task_cache: dict[tuple[str, str], Task]) -> bool:
    task = episode.task
    recorded = task_cache.get((task.environment, task.id))
    if recorded is None:
        row = connection.execute(_TASK_OF, {"environment": task.environment, "wanted": task.id}).mappings().first()
        if row is None:
            return True
        recorded = Task(row["environment"], row["id"], Split(row["split"]), row["kind"])
    if recorded != task:
        raise EpisodeRefusedError(
            f"episode {episode.id!r}: the buffer has task {task.id!r} of {task.environment} as {recorded.split.value} "
            f"(kind {recorded.kind!r}), not {task.split.value} (kind {task.kind!r}); a task has one split and one kind"
        )
    return False


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
