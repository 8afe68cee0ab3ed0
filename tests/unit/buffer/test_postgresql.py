"""A buffer in PostgreSQL: the content is as in SQLite; writers, namespaces, restarts, migration, passwords."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retro.buffer import ReplayBuffer, ReplayBufferError
from retro.buffer.engine import ADDING, ConnectionLostError, EpisodeRefusedError
from retro.buffer.jsonl import import_jsonl
from retro.buffer.lease import NamespaceLease
from retro.buffer.migration import migrate
from retro.cli.app import app
from retro.cli.leasing import leased
from retro.config import ConfigError, RunConfig, load_config
from retro.evaluation.stage import STAGE as EVALUATE
from retro.lease import LeaseHeldError, LeaseLostError
from retro.training.collect import STAGE as COLLECT
from retro.types import Episode, Reflection, Split, Task, Usage

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'retro[postgres]'")

from postgresql_server import TRUST, WITH_PASSWORD, Server, running_server  # noqa: E402

Make = Callable[..., Episode]
Add = Callable[[Episode], bool]
FIXTURES = Path(__file__).with_name("fixtures")
NUMBERS = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """A namespace that nothing uses yet."""
    return server.url(f"run-{next(NUMBERS)}")


def tree(make: Make, task: str = "task-1") -> list[Episode]:
    """Two failed episodes with their retries, on one task."""
    root = make(f"{task[:50]}/root", 0.3, task=Task("household", task, Split.TRAIN, "heat"))
    retry = make(f"{task[:50]}/retry", 0.6, parent=root, text="open it", index=1)
    return [
        root,
        retry,
        make(f"{task[:50]}/again", 0.3, parent=root, text="open it", index=1),
        make(f"{task[:50]}/control", 0.0, parent=root),
        make(f"{task[:50]}/deeper", 1.0, parent=retry, text="use the microwave"),
    ]


def test_the_content_and_its_order_are_those_of_sqlite(url: str, make: Make) -> None:
    """The server's locale would sort the names otherwise, and its first tables had no room for some values."""
    names = ["b", "B", "_", "é", "x" * 600]
    episodes = [episode for name in names for episode in tree(make, name)]
    episodes.append(replace(make("large", 1 / 3), usage=Usage(2**40, 7), info={"zero": "\0", "ä": [1, 0.1, None]}))
    with ReplayBuffer(url) as buffer, ReplayBuffer("sqlite://") as lite:
        for store in (buffer, lite):
            for episode in episodes:
                store.add(episode)
                store.add(episode)
        assert list(buffer.episodes()) == list(lite.episodes())
        assert list(buffer.groups()) == list(lite.groups())
        assert list(buffer.failures(["household"], [Split.TRAIN])) == list(lite.failures())
        assert (buffer.count(), buffer.environments()) == (len(episodes), ["household"])
        assert buffer.digest() == lite.digest()
        assert buffer.get("large") == episodes[-1]
        unused = [Reflection("look", "served", index, score=1 / 3) for index in range(2)]
        assert (ids := buffer.add_reflections(episodes[0], unused)) == lite.add_reflections(episodes[0], unused)
        assert buffer.reflection(ids[1]) == lite.reflection(ids[1]) == (episodes[0].id, unused[1])


def test_what_postgresql_cannot_store_is_refused_by_name(url: str, make: Make) -> None:
    with ReplayBuffer(url) as buffer, buffer.transaction() as add:
        add(make("root"))
        with pytest.raises(EpisodeRefusedError, match=r"episode 'zero': cannot be stored: .*NUL"):
            add(make("zero", parent=make("root"), text="a\0b"))
        add(make("next"))
    with ReplayBuffer(url) as buffer, pytest.raises(EpisodeRefusedError, match=r"'root': cannot be stored: .*NUL"):
        buffer.add_reflections(make("root"), [Reflection("look", "served"), Reflection("a\0b", "served")])
    with ReplayBuffer(url, create=False) as buffer:
        assert buffer.count() == 2


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_writers_at_once_lose_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, make: Make, database: str
) -> None:
    """Four writers make one buffer, and each adds most of the trees in its own order."""
    lite = f"sqlite:///{tmp_path / 'buffer.sqlite'}"
    url = lite if database == "sqlite" else request.getfixturevalue("url")
    trees = [tree(make, f"task-{number}") for number in range(6)]
    start = threading.Barrier(4)

    def write(seed: int) -> None:
        chosen = random.Random(seed).sample(trees, 4) + trees[2 * seed :][:2]
        start.wait()
        with ReplayBuffer(url) as buffer:
            for episode in (episode for chosen_tree in chosen for episode in chosen_tree):
                buffer.add(episode)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with ReplayBuffer(url, create=False) as buffer, ReplayBuffer("sqlite://") as alone:
        for episode in (episode for one_tree in trees for episode in one_tree):
            alone.add(episode)
        assert list(buffer.episodes()) == list(alone.episodes())
        assert buffer.digest() == alone.digest()


@pytest.mark.parametrize(("second", "refused"), [(0.3, None), (0.6, "another one with this id")])
def test_a_writer_waits_for_the_other_and_compares(url: str, make: Make, second: float, refused: str | None) -> None:
    with ReplayBuffer(url) as buffer, ReplayBuffer(url) as other, ThreadPoolExecutor(1) as pool:
        with buffer._transaction(ADDING) as add:
            add(make("root", 0.3))
            waiting = pool.submit(other.add, make("root", second))
            time.sleep(0.2)
            assert not waiting.done()
        error = waiting.exception()
        assert (refused is None and error is None) or (refused is not None and refused in str(error))
        assert buffer.get("root") == make("root", 0.3)


def test_an_import_and_other_writers_wait_for_one_another(
    url: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro.buffer.engine.WAIT_SECONDS", 0.2)
    with ReplayBuffer(url) as importing, ReplayBuffer(url) as other:
        with importing.transaction() as add:
            add(make("root"))
            assert other.count() == 0
            with pytest.raises(ReplayBufferError, match="lock timeout; another process writes") as raised:
                other.add(make("root"))
            assert "\n" not in str(raised.value)
        other.add(make("root"))


def test_each_run_has_a_namespace_unless_several_name_the_same(server: Server, make: Make) -> None:
    shared = server.url("shared")
    plain = shared.replace("&schema=shared", "")
    runs = [RunConfig.model_validate({"name": name, "buffer": {"url": plain}}) for name in ('a"b', "A.b", "x y/ä%")]
    for number, run in enumerate(runs):
        with ReplayBuffer(run.buffer_url) as buffer:
            assert buffer.count() == 0
            buffer.add(make(f"root-{number}"))
            buffer.add(make("same-id", 0.1 * number, task=Task("household", f"{number}", Split(list(Split)[number]))))
    for number, run in enumerate(runs):
        with ReplayBuffer(run.buffer_url, create=False) as buffer:
            assert {episode.id for episode in buffer.episodes()} == {f"root-{number}", "same-id"}
    together = [RunConfig.model_validate({"name": name, "buffer": {"url": shared}}) for name in ("one", "two")]
    for run in together:
        with ReplayBuffer(run.buffer_url) as buffer:
            buffer.add(make(run.name))
            assert buffer.url == shared
    with ReplayBuffer(shared, create=False) as buffer:
        assert buffer.count() == 2
    with pytest.raises(ReplayBufferError, match=r"schema=nobody: not a replay buffer"):
        ReplayBuffer(server.url("nobody"), create=False)


def test_a_schema_of_something_else_is_refused(server: Server, url: str) -> None:
    with server.connect() as connection:
        connection.execute("create schema songs; create table songs.tasks (title text)")
    with pytest.raises(ReplayBufferError, match="with the tables tasks; give the buffer one of its own"):
        ReplayBuffer(server.url("songs"))


def test_a_run_that_was_started_twice_is_refused_by_the_database(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro.buffer.lease._PAUSES", ())
    with closing_lease(NamespaceLease(url, "mine")) as holder:
        with pytest.raises(LeaseHeldError) as refused:
            NamespaceLease(url, "mine")
        said = str(refused.value)
        assert f"process {os.getpid()} on {os.uname().nodename}"[:50] in said
        assert re.search(r"\(since .* UTC, last sign of life \d+ s ago\) works on it: wait until", said)
        assert "\n" not in said
        NamespaceLease(url, "another").release()
        NamespaceLease(server.url("elsewhere"), "mine").release()
        holder.beat()
    NamespaceLease(url, "mine").release()


def test_a_lease_ends_with_its_session_and_is_taken_again(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro.buffer.lease._PAUSES", ())
    with server.connect() as admin, closing_lease(NamespaceLease(url, "mine")) as holder:
        kill = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name like 'retro, %'"
        admin.execute(kill)
        holder.beat()
        with pytest.raises(LeaseHeldError):
            NamespaceLease(url, "mine")
        admin.execute(kill)
        with closing_lease(NamespaceLease(url, "mine")):
            holder.beat()  # by its name, the session may be the lost one of this process
            monkeypatch.setattr("retro.buffer.lease._process", lambda: "process 7 on there")
            with pytest.raises(LeaseLostError, match="taken over by process"):
                holder.beat()


def test_two_folders_of_one_name_in_one_namespace_are_one_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro.buffer.lease._PAUSES", ())
    shared = {"url": server.url("leased")}
    one, two, other = (
        RunConfig.model_validate({"name": name, "runs": str(tmp_path / runs), "buffer": shared})
        for name, runs in (("mine", "a"), ("mine", "b"), ("other", "b"))
    )
    with leased(one, [COLLECT]):
        with pytest.raises(LeaseHeldError, match=r"run 'mine' in the replay buffer .*name=…"), leased(two, [COLLECT]):
            pass
        with leased(two, [EVALUATE]), leased(other, [COLLECT]):  # an evaluation needs no buffer
            pass
    assert not list(tmp_path.rglob("lease.json"))


@contextmanager
def closing_lease(lease: NamespaceLease) -> Iterator[NamespaceLease]:
    try:
        yield lease
    finally:
        lease.release()


def test_a_restart_of_the_server_loses_and_doubles_nothing(server: Server, url: str, make: Make) -> None:
    """A collection goes on while its server is down for half a second."""
    episodes = [episode for number in range(8) for episode in tree(make, f"task-{number}")]

    def restart() -> None:
        server.stop()
        time.sleep(0.5)
        server.start()

    restarting = threading.Thread(target=restart)
    with ReplayBuffer(url) as buffer, ReplayBuffer("sqlite://") as lite:
        for number, episode in enumerate(episodes):
            if number == 9:
                restarting.start()
            elif number == 10:
                time.sleep(0.05)  # the rest is written while the server stops, is down, and starts
            assert buffer.get(episode.id) is None
            buffer.add(episode)
            lite.add(episode)
        restarting.join()
        assert list(buffer.episodes()) == list(lite.episodes())
        assert buffer.digest() == lite.digest()


def test_an_episode_is_added_once_whenever_the_connection_ends(
    server: Server, url: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the commit, when nothing is stored yet; and after it, when the writer does not know that it was done."""
    with ReplayBuffer(url) as buffer, server.connect() as other:
        kill = (
            "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and usename = 'retro'"
        )
        with (
            pytest.raises(ConnectionLostError, match="run the same command again") as raised,
            buffer.transaction() as add,
        ):
            add(make("root"))
            other.execute(kill)
            add(make("next"))
        assert "\n" not in str(raised.value)
        assert buffer.count() == 0
        transactions = iter([without_an_answer(buffer._transaction(ADDING)), buffer._transaction(ADDING)])
        monkeypatch.setattr(buffer, "_transaction", lambda options: next(transactions))
        buffer.add(make("root"))
        assert buffer.count() == 1
        assert next(transactions, None) is None


@contextmanager
def without_an_answer(transaction: AbstractContextManager[Add]) -> Iterator[Add]:
    """A transaction that is committed without its writer being told."""
    with transaction as add:
        yield add
    raise ConnectionLostError("the server went away")


def test_a_server_that_does_not_come_back_is_one_error(
    server: Server, url: str, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("retro.buffer.engine.WAIT_SECONDS", 0.4)
    with ReplayBuffer(url) as buffer:
        server.stop()
        try:
            with (
                caplog.at_level(logging.WARNING),
                pytest.raises(ReplayBufferError, match="that the server runs") as raised,
            ):
                buffer.add(make("root"))
            assert "\n" not in str(raised.value)
            assert "its server does not answer; waiting up to 0.4 s" in caplog.text
            monkeypatch.setattr("retro.buffer.engine.WAIT_SECONDS", 60)
            with pytest.raises(ReplayBufferError, match="that the server runs"):  # at once
                ReplayBuffer(url)
        finally:
            server.start()


@pytest.fixture
def old(server: Server, url: str, tmp_path: Path) -> tuple[str, Path]:
    """The buffer of schema version 1 (see ``test_migration.py``), in PostgreSQL and in SQLite."""
    path = tmp_path / "buffer.sqlite"
    schema = url.partition("schema=")[2]
    with closing(sqlite3.connect(path)) as lite, server.connect() as connection:
        lite.executescript((FIXTURES / "buffer_v1.sql").read_text(encoding="utf-8"))
        connection.execute(f'create schema "{schema}"; set search_path to "{schema}"')
        for table in ("schema_info", "tasks", "episodes", "reflections"):
            (definition,) = lite.execute("select sql from sqlite_master where name = ?", [table]).fetchone()
            connection.execute(definition)
            rows = lite.execute(f"select * from {table}")
            names = [column[0] for column in rows.description]
            for row in rows:
                values = [bool(value) if name == "success" else value for name, value in zip(names, row, strict=True)]
                connection.execute(f"insert into {table} values ({', '.join(['%s'] * len(names))})", values)
    return url, path


def test_an_old_buffer_is_migrated_as_in_sqlite(old: tuple[str, Path], make: Make) -> None:
    url, path = old
    with pytest.raises(
        ReplayBufferError, match=r"schema version 1, .*: retro buffer migrate 'postgresql\+psycopg://.*'$"
    ):
        ReplayBuffer(url)
    done = CliRunner().invoke(app, ["buffer", "migrate", url])
    assert (done.exit_code, done.output) == (0, f"{url}: 50 episodes brought up to date\n")
    assert "is up to date" in CliRunner().invoke(app, ["buffer", "migrate", url]).output
    migrate(f"sqlite:///{path}")
    with ReplayBuffer(url, create=False) as buffer, ReplayBuffer(f"sqlite:///{path}") as lite:
        assert buffer.digest() == lite.digest()
        for store in (buffer, lite):  # its columns have the order and the room of a new buffer's
            for name in ("b", "B", "_", "x" * 600):
                store.add(make(f"new-{name[:9]}", task=Task("household", name, Split.TRAIN)))
        assert list(buffer.episodes()) == list(lite.episodes())


def test_a_migration_is_all_or_nothing(old: tuple[str, Path], server: Server) -> None:
    url, _ = old
    with server.connect() as connection:
        connection.execute(f"update \"{url.partition('schema=')[2]}\".episodes set stop = 'tired' where id = 'mine-6'")
    with pytest.raises(ReplayBufferError, match="'mine-6'"):
        migrate(url)
    with pytest.raises(ReplayBufferError, match="schema version 1"):
        ReplayBuffer(url)


def test_the_commands_take_a_url_and_a_run_whose_config_has_one(server: Server, tmp_path: Path, make: Make) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    plain = server.url("mine").replace("&schema=mine", "")
    (run / "config.yaml").write_text(json.dumps({"name": "mine", "buffer": {"url": plain}}), encoding="utf-8")
    line = {"environment": "household", "task": "t", "trajectory": {"opening": "?"}, "return": 0.5, "success": False}
    (tmp_path / "in.jsonl").write_text(json.dumps(line), encoding="utf-8")

    def retro(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["buffer", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "1 episodes added" in retro("import", "jsonl", str(tmp_path / "in.jsonl"), "--buffer", str(run))
    assert "1 there already" in retro("import", "jsonl", str(tmp_path / "in.jsonl"), "--buffer", server.url("mine"))
    assert "household" in retro("stats", str(run))
    retro("export", server.url("mine"), str(tmp_path / "out.jsonl"))
    with ReplayBuffer("sqlite://") as lite, ReplayBuffer(server.url("mine"), create=False) as buffer:
        import_jsonl(lite, tmp_path / "out.jsonl")
        assert lite.digest() == buffer.digest()


def test_the_password_comes_from_the_environment_or_the_password_file(
    server: Server, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.connect() as connection:
        connection.execute("create role guarded login password 'hunter2'")
        connection.execute("grant create on database postgres to guarded")
    url = server.url("guarded", user="guarded")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.delenv("PGPASSFILE", raising=False)
    server.authenticate(WITH_PASSWORD)
    try:
        with pytest.raises(ReplayBufferError, match=r"PGPASSWORD or ~/\.pgpass"):
            ReplayBuffer(url)
        monkeypatch.setenv("PGPASSWORD", "hunter3")
        with pytest.raises(ReplayBufferError, match="password authentication failed") as raised:
            ReplayBuffer(url)
        assert "hunter" not in str(raised.value)
        monkeypatch.setenv("PGPASSWORD", "hunter2")
        with ReplayBuffer(url) as buffer:
            buffer.add(make("root"))
            assert "hunter" not in f"{buffer} {buffer.url}"
        monkeypatch.delenv("PGPASSWORD")
        (tmp_path / ".pgpass").write_text("*:*:*:guarded:hunter2\n", encoding="utf-8")
        (tmp_path / ".pgpass").chmod(0o600)
        with ReplayBuffer(url, create=False) as buffer:
            assert buffer.count() == 1
        config = tmp_path / "config.yaml"
        config.write_text(f"buffer: {{url: '{url}'}}\n", encoding="utf-8")
        assert "hunter" not in load_config(config).dump()
    finally:
        server.authenticate(TRUST)


@pytest.mark.parametrize(
    "secret", ["//me:hunter2@host/db", "//host/db?password=hunter2", "//host/db?schema=a&sslpassword=hunter2"]
)
def test_a_url_with_a_password_is_refused_and_not_shown(secret: str, tmp_path: Path) -> None:
    url = f"postgresql+psycopg:{secret}"
    (tmp_path / "config.yaml").write_text(f"buffer: {{url: '{url}'}}\n", encoding="utf-8")
    with pytest.raises(ReplayBufferError, match="take the password out") as opened:
        ReplayBuffer(url)
    with pytest.raises(ConfigError, match="PGPASSWORD") as loaded:
        load_config(tmp_path / "config.yaml")
    assert "hunter2" not in f"{opened.value} {loaded.value}"
