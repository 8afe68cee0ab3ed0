"""The replay buffer's tables, and episodes as rows, in SQLite and PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import (
    JSON,
    VARCHAR,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    RowMapping,
    Select,
    String,
    Table,
    Text,
    inspect,
    select,
)

from retro.buffer.engine import ReplayBufferError
from retro.reading import UnreadableError
from retro.types import Episode, Recalled, Reflection, Split, Step, StopReason, Task, Trajectory, Usage

SCHEMA_VERSION = 2

NAME = String().with_variant(VARCHAR(collation="C"), "postgresql")
"""Text in an order that does not depend on the server's locale: training reads the episodes in this order."""

metadata = MetaData()

schema_info = Table("schema_info", metadata, Column("version", Integer, primary_key=True))

tasks = Table(
    "tasks",
    metadata,
    Column("environment", NAME, primary_key=True),
    Column("id", NAME, primary_key=True),
    Column("split", NAME, nullable=False),
    Column("kind", NAME, nullable=False),
)

reflections = Table(
    "reflections",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("parent", NAME, ForeignKey("episodes.id"), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("source", NAME, nullable=False),
    Column("index", BigInteger, nullable=False),
    Column("finish_reason", NAME, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("score", Float, nullable=True),
)

episodes = Table(
    "episodes",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("environment", NAME, nullable=False),
    Column("task", NAME, nullable=False),
    Column("trial", BigInteger, nullable=False),
    Column("parent", NAME, ForeignKey("episodes.id"), nullable=True, index=True),
    # Not a foreign key: reflections already refer to episodes, and the two tables would form a cycle.
    Column("reflection", NAME, nullable=True),
    Column("return", Float, nullable=False),
    Column("success", Boolean, nullable=False),
    Column("stop", NAME, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("trajectory", JSON, nullable=False),
    Column("recalled", JSON, nullable=False),
    Column("info", JSON, nullable=False),
    Column("digest", NAME, nullable=False),
    ForeignKeyConstraint(["environment", "task"], ["tasks.environment", "tasks.id"]),
    Index("episodes_by_task", "environment", "task", "trial"),
)


def schema_version(connection: Connection) -> int | None:
    """The version of the replay buffer in a database; None if there is none."""
    if not inspect(connection).has_table(schema_info.name):
        return None
    return connection.scalar(select(schema_info.c.version))


def unreadable(name: str, version: int | None) -> ReplayBufferError:
    """Why a database of another version, or without one, is refused."""
    if version is None:
        return ReplayBufferError(
            f"replay buffer {name}: not a replay buffer; collect or import episodes into a new one"
        )
    if version > SCHEMA_VERSION:
        return ReplayBufferError(
            f"replay buffer {name}: a later retro wrote it (schema version {version}; this one reads {SCHEMA_VERSION})"
        )
    return ReplayBufferError(
        f"replay buffer {name}: it has schema version {version}, this retro reads {SCHEMA_VERSION}; bring it up to "
        f"date, once, with: retro buffer migrate {shlex.quote(name)}"
    )


def content_digest(value: Any) -> str:
    """32 hexadecimal digits that name the content of ``value``, which is plain JSON (see ``types.to_json``)."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _canonical(value: Any) -> Any:
    """``value`` with 1 for 1.0, since databases and JSON do not keep the difference."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def task_row(task: Task) -> dict[str, Any]:
    return {"environment": task.environment, "id": task.id, "split": task.split.value, "kind": task.kind}


def reflection_row(parent: str, tree: dict[str, Any]) -> dict[str, Any]:
    """The row of a reflection, ``tree`` in JSON. Its id is the digest of its content, so retries that were given the
    same reflection share a row."""
    columns = {key: value for key, value in tree.items() if key != "usage"} | tree["usage"]
    return {"id": content_digest([parent, tree]), "parent": parent, **columns}


def episode_row(tree: dict[str, Any], reflection_id: str | None, digest: str) -> dict[str, Any]:
    """The row of an episode, ``tree`` in JSON; ``digest`` is that of ``tree``."""
    same = ("id", "trial", "parent", "success", "seed", "trajectory", "recalled", "info")
    return {
        **{key: tree[key] for key in same},
        "environment": tree["task"]["environment"],
        "task": tree["task"]["id"],
        "reflection": reflection_id,
        "return": tree["return_"],
        "stop": tree["stop"].value,
        "digest": digest,
        **tree["usage"],
    }


def select_episodes() -> Select[Any]:
    """All episodes with the columns that :func:`to_episode` reads; parents come before their children."""
    task_columns = [tasks.c.split, tasks.c.kind]
    reflection_columns = [column.label(f"reflection_{column.name}") for column in reflections.c if column.name != "id"]
    return (
        select(episodes, *task_columns, *reflection_columns)
        .join(tasks, (tasks.c.environment == episodes.c.environment) & (tasks.c.id == episodes.c.task))
        .join(reflections, reflections.c.id == episodes.c.reflection, isouter=True)
        .order_by(episodes.c.environment, episodes.c.task, episodes.c.trial, episodes.c.id)
    )


def to_episode(row: RowMapping) -> Episode:
    """The episode of a row of :func:`select_episodes`.

    Raises:
        ReplayBufferError: naming the episode, if its row cannot be read: it is damaged, or an earlier release wrote it
            without checking it.
    """
    try:
        return _to_episode(row)
    except (KeyError, TypeError, ValueError) as error:
        raise ReplayBufferError(
            f"episode {row['id']!r}: its row in the replay buffer cannot be read: {error}; delete it from the table "
            "episodes, after its retries, or use another buffer"
        ) from None


def _to_episode(row: RowMapping) -> Episode:
    trajectory, recalled = row["trajectory"], row["recalled"]
    for value in (trajectory, recalled, row["info"]):
        if isinstance(value, UnreadableError):
            raise value
    return Episode(
        id=row["id"],
        task=Task(row["environment"], row["task"], Split(row["split"]), row["kind"]),
        trial=row["trial"],
        trajectory=Trajectory(trajectory["opening"], tuple(map(_to_step, trajectory["steps"]))),
        return_=row["return"],
        success=row["success"],
        stop=StopReason(row["stop"]),
        parent=row["parent"],
        reflection=None if row["reflection"] is None else to_reflection(row, "reflection_"),
        recalled=Recalled(tuple(recalled["entries"]), tuple(recalled["ids"])),
        seed=row["seed"],
        usage=Usage(row["prompt_tokens"], row["completion_tokens"]),
        info=row["info"],
    )


def to_reflection(row: RowMapping, prefix: str = "") -> Reflection:
    """The reflection in a row of its table; in one of :func:`select_episodes`, its columns have a ``prefix``."""
    return Reflection(
        text=row[f"{prefix}text"],
        source=row[f"{prefix}source"],
        index=row[f"{prefix}index"],
        finish_reason=cast(Any, row[f"{prefix}finish_reason"]),
        usage=Usage(row[f"{prefix}prompt_tokens"], row[f"{prefix}completion_tokens"]),
        score=row[f"{prefix}score"],
    )


def _to_step(step: Mapping[str, Any]) -> Step:
    return Step(**{**step, "usage": Usage(**step.get("usage", {}))})  # rows of earlier releases have no usage
