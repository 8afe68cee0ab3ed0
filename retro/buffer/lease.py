"""The lease of a run's name in a PostgreSQL database: an advisory lock that ends with the session that took it."""

from __future__ import annotations

import logging
import os
import platform
import time

from sqlalchemy import Connection, make_url

from retro.buffer.engine import ReplayBufferError, open_engine
from retro.lease import Holder, LeaseLostError, refused

logger = logging.getLogger(__name__)

_PAUSES = (0.1, 0.4, 1.0)
"""Seconds between tries: the server needs a moment to notice that a process was killed."""
_PATIENCE = 4
"""Signs of life at which a lost session of this process may still have the lease: so long can the server keep it."""
_SETTINGS = {"tcp_keepalives_idle": "20", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
"""The server ends the session of a machine that vanished after 20 + 3 · 10 s. Its default is two hours."""
_NAME = "retro, "
"""What ``application_name`` begins with. The rest says which process has the lease."""
_LONGEST_NAME = 63
_TRY = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
_HOLDER = """
SELECT activity.application_name, extract(epoch from activity.backend_start),
    extract(epoch from clock_timestamp() - activity.state_change)
FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid)
WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1
    AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (locks.classid::bigint << 32 | locks.objid::bigint) = hashtextextended(%s, 0)
"""


class NamespaceLease:
    """The lease of the name of a run in a namespace of PostgreSQL. Runs with other names may share the namespace.

    The server releases it when the session ends: at once when the process is killed, and within a minute when its
    machine or the network fails. After a restart of the server the lease is taken again. A proxy that gives each
    transaction another session (PgBouncer's mode ``transaction``) breaks it.

    Args:
        url: The buffer's URL.
        name: The run's name.

    Raises:
        LeaseHeldError: if another process has the lease.
        ReplayBufferError: if the database cannot be opened.
    """

    def __init__(self, url: str, name: str) -> None:
        self._engine = open_engine(url, create=False)
        self._what = f"run {name!r} in the replay buffer {self._engine.url.render_as_string()}"
        self._key = f"retro run {name} in {make_url(url).query['schema']}"
        self._connection: Connection | None = None
        self._refusals = 0
        try:
            connection = self._connected()
            for pause in (*_PAUSES, None):
                if connection.exec_driver_sql(_TRY, (self._key,)).scalar():
                    return
                if pause is not None:
                    time.sleep(pause)
            raise refused(self._what, self._holder(connection), "name=… (runs that share a buffer name its schema)")
        except Exception:
            self.release()
            raise

    def beat(self) -> None:
        """Ask the server for a sign of life; if the session has ended, take the lease again.

        Raises:
            LeaseLostError: if another process took it meanwhile.
        """
        try:
            if self._connection is not None:
                self._connection.exec_driver_sql("SELECT 1")
                return
        except ReplayBufferError:
            self._disconnect()
        try:
            connection = self._connected()
            if connection.exec_driver_sql(_TRY, (self._key,)).scalar():
                self._refusals = 0
                return
            holder = self._holder(connection)
            self._disconnect()
            self._refusals += 1
            lost_session = holder is None or _process().startswith(holder.process)
            if not lost_session or self._refusals > _PATIENCE:
                raise LeaseLostError(f"{self._what}: taken over by {holder}: this process stops")
            logger.warning("%s: the server still keeps the lost session of this process", self._what)
        except ReplayBufferError as error:
            self._disconnect()
            logger.warning("%s: the lease is taken again when the server is back: %s", self._what, error)

    def release(self) -> None:
        """End the session, and the lease with it."""
        self._disconnect()
        self._engine.dispose()

    def _connected(self) -> Connection:
        self._connection = connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        name = (_NAME + _process())[:_LONGEST_NAME]
        for setting, value in {**_SETTINGS, "application_name": name}.items():
            connection.exec_driver_sql("SELECT set_config(%s, %s, false)", (setting, value))
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()  # the pool must not keep a session that has the lock
            self._connection.close()
            self._connection = None

    def _holder(self, connection: Connection) -> Holder | None:
        row = connection.exec_driver_sql(_HOLDER, (self._key,)).first()
        if row is None:
            return None
        process, since, silent = row  # the two times are null for a process of another user of the database
        return Holder(
            str(process).removeprefix(_NAME),
            None if since is None else float(since),
            None if silent is None else float(silent),
        )


def _process() -> str:
    return f"process {os.getpid()} on {platform.node()}"
