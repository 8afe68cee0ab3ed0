"""A PostgreSQL server for tests: in a temporary folder, on a Unix socket, without durability."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

OPTIONS = ("listen_addresses=", "fsync=off", "full_page_writes=off", "shared_buffers=16MB")
TRUST, WITH_PASSWORD = "local all all trust\n", "local all guarded scram-sha-256\nlocal all all trust\n"


def binaries() -> Path:
    """The folder of the server's programs; skips the test if there is none."""
    found = shutil.which("postgres")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found is None and not debian:
        pytest.skip("no PostgreSQL server is installed (Debian: apt install postgresql)")
    return Path(found).resolve().parent if found is not None else debian[-1].parent


class Server:
    """A server that can be stopped and started again."""

    def __init__(self, programs: Path, folder: Path, identity: dict[str, Any]) -> None:
        self._programs, self._folder, self._identity = programs, folder, identity
        self._process: subprocess.Popen[bytes] | None = None
        version = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True)
        match = re.search(r"\d+", version.stdout)
        # A locale that does not sort as SQLite does, where initdb can choose one that is always there.
        icu = ["--locale-provider=icu", "--icu-locale=en"] if match and int(match[0]) >= 15 else []
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "retro", "-A", "trust", "-N"]
        initdb += ["-E", "UTF8", "--locale=C", *icu]
        subprocess.run(initdb, cwd=folder, check=True, stdout=subprocess.DEVNULL, **identity)

    def url(self, schema: str, user: str = "retro") -> str:
        return f"postgresql+psycopg://{user}@/postgres?host={self._folder}&schema={schema}"

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(dbname="postgres", user="retro", host=str(self._folder), autocommit=True)

    def start(self) -> None:
        options = [part for option in OPTIONS for part in ("-c", option)]
        command = [self._programs / "postgres", "-D", self._folder / "data", "-k", self._folder, *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, **self._identity)
        for _ in range(600):
            try:
                self.connect().close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                time.sleep(0.05)
            else:
                return
        raise TimeoutError((self._folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the sessions and the server. SIGINT lets it write its files, SIGQUIT does not."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=60)

    def authenticate(self, rules: str) -> None:
        """Put other rules in force for new connections."""
        (self._folder / "data" / "pg_hba.conf").write_text(rules, encoding="utf-8")
        with self.connect() as connection:
            connection.execute("select pg_reload_conf()")


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that was started for the ``with`` block. PostgreSQL refuses to run as root: root lends it a user."""
    programs = binaries()
    with tempfile.TemporaryDirectory(prefix="retro-") as name:
        folder, identity = Path(name), {}
        if os.geteuid() == 0:
            users = {user.pw_name: user for user in pwd.getpwall()}
            user = users.get("postgres") or users["nobody"]
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = Server(programs, folder, identity)
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)
