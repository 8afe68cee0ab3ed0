from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from retro.buffer import ReplayBuffer, ReplayBufferError
from retro.buffer.engine import EpisodeRefusedError
from retro.cli.plan import plan_run
from retro.config import RunConfig
from retro.types import Episode, Recalled, Split, Step, StopReason, Task, Trajectory

Make = Callable[..., Episode]
ROOT = Path(__file__).resolve().parents[3]
NESTED: dict[str, Any] = {}
CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR
for _ in range(150):
    NESTED = {"deeper": NESTED}


def tree(make: Make) -> list[Episode]:
    root = make("root", 0.3)
    retry = make("retry-b", 0.6, parent=root, text="open it", index=1)
    return [
        root,
        retry,
        make("retry-a", 0.3, parent=root, text="heat it", index=0),
        make("control", 0.0, parent=root),
        make("deeper", 1.0, parent=retry, text="use the microwave"),
    ]


def test_an_episode_comes_back_equal(buffer: ReplayBuffer, make: Make) -> None:
    for episode in tree(make):
        buffer.add(episode)
    assert [buffer.get(episode.id) for episode in tree(make)] == tree(make)
    assert buffer.get("no such") is None


def test_a_reflection_waits_for_its_retry_outside_the_tree(buffer: ReplayBuffer, make: Make) -> None:
    root = make("root", 0.3)
    retry = make("retry", 0.6, parent=root, text="open it", index=1)
    assert retry.reflection is not None
    ids = buffer.add_reflections(root, [replace(retry.reflection, index=0), retry.reflection])
    assert ids == buffer.add_reflections(root, [replace(retry.reflection, index=0), retry.reflection])
    assert buffer.reflection(ids[1]) == ("root", retry.reflection)
    assert buffer.reflection("no such") is None
    assert list(buffer.groups()) == [] and list(buffer.episodes()) == [root]
    buffer.add(retry)
    assert [group.retries for group in buffer.groups()] == [(retry,)]
    assert buffer.reflection(ids[1]) == ("root", retry.reflection)
    assert (buffer.task("household", "task-1"), buffer.task("household", "no such")) == (root.task, None)


def test_adding_twice_changes_nothing_and_another_one_with_the_id_is_refused(buffer: ReplayBuffer, make: Make) -> None:
    buffer.add(make("root", 0.3))
    digest = buffer.digest()
    buffer.add(make("root", 0.3))
    assert buffer.count() == 1
    assert buffer.digest() == digest
    with pytest.raises(ReplayBufferError, match=r"'root'.*another one with this id"):
        buffer.add(make("root", 0.4))


def test_whole_numbers_are_the_same_content_as_floats(buffer: ReplayBuffer, make: Make) -> None:
    episode = make("root", 0.0)
    buffer.add(replace(episode, return_=0))
    buffer.add(episode)
    assert buffer.count() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"return_": 1.5}, "'new': return: Input should be less than or equal to 1"),
        ({"return_": float("nan")}, "'new': return: NaN: not a finite number"),
        ({"trial": -1}, "'new': trial: Input should be greater than or equal to 0"),
        ({"id": ""}, "'': id: String should have at least 1 character"),
        ({"info": {"seen": {1}}}, "'new': info.seen: Object of type set is not JSON"),
        ({"info": {"score": [0.0, float("-inf")]}}, "'new': info.score.1: -Infinity: not a finite number"),
        ({"info": {"count": 2**63}}, "'new': info.count: 9223372036854775808: an integer beyond 64 bits"),
        ({"info": {"\udc80": 1}}, "'new': info: .*half of a surrogate pair"),
        ({"info": NESTED}, "'new': info.*nested deeper than 100 levels"),
        ({"info": CIRCULAR}, "'new': info: nested too deeply, or holds itself"),
        (
            {"trajectory": Trajectory("?", (Step("a", "b\ud800"),))},
            r"'new': trajectory\.steps\.0\.observation: .*half of a surrogate pair",
        ),
        ({"task": Task("household", "\ud800", Split.TRAIN)}, "'new': task: .*half of a surrogate pair"),
        ({"parent": "nobody", "trial": 1}, "'nobody' is not in the buffer"),
        ({"parent": "solved", "trial": 1}, "ended by success"),
        ({"parent": "crashed", "trial": 1}, "ended by actor_error"),
        ({"parent": "root", "trial": 0}, "must come after"),
        ({"parent": "root", "trial": 1, "task": Task("household", "task-2", Split.TRAIN, "heat")}, "another task"),
        ({"task": Task("household", "task-1", Split.TEST, "heat")}, "one split"),
    ],
)
def test_what_contradicts_the_tree_is_refused(
    buffer: ReplayBuffer, make: Make, change: dict[str, Any], message: str
) -> None:
    buffer.add(make("root", 0.3))
    buffer.add(make("solved", 1.0))
    buffer.add(make("crashed", 0.0, stop=StopReason.ACTOR_ERROR))
    before = buffer.digest()
    with pytest.raises(EpisodeRefusedError, match=message):
        buffer.add(replace(make("new", 0.3), **change))
    assert buffer.digest() == before


def test_a_reflection_without_a_parent_is_refused(buffer: ReplayBuffer, make: Make) -> None:
    with pytest.raises(ReplayBufferError, match="no parent"):
        buffer.add(make("new", text="try harder"))


def test_groups(buffer: ReplayBuffer, make: Make) -> None:
    for episode in tree(make):
        buffer.add(episode)
    first, second = buffer.groups()
    assert first.parent.id == "root"
    assert [retry.id for retry in first.retries] == ["retry-a", "retry-b"]
    assert [control.id for control in first.controls] == ["control"]
    assert second.parent.id == "retry-b"
    assert [retry.id for retry in second.retries] == ["deeper"]


def paths(buffer: ReplayBuffer) -> dict[str, list[str]]:
    return {episode.id: [reflection.text for reflection in path] for episode, path in buffer.failures()}


def test_a_failure_comes_with_the_reflections_on_the_way_to_it(buffer: ReplayBuffer, make: Make) -> None:
    for episode in tree(make):
        buffer.add(episode)
    assert paths(buffer) == {"root": [], "retry-a": ["heat it"], "retry-b": ["open it"], "control": []}


def test_what_a_late_root_recalled_stands_for_the_trials_before_it(buffer: ReplayBuffer, make: Make) -> None:
    known = Recalled(("older", "old"), ("reflection-0", "reflection-1"))
    root = replace(make("root", 0.3), trial=3, recalled=known)
    retry = make("retry", 0.3, parent=root, text="new")
    first = replace(make("first", 0.3, task=Task("household", "task-2", Split.TRAIN)), recalled=known)
    for episode in (root, retry, make("last", 0.3, parent=retry), first):
        buffer.add(episode)
    late = {"root": ["older", "old"], "retry": ["older", "old", "new"], "last": ["older", "old", "new"]}
    assert paths(buffer) == late | {"first": []}


def test_retries_that_the_actor_broke_off_are_in_no_group(buffer: ReplayBuffer, make: Make) -> None:
    root = make("root", 0.3)
    buffer.add(root)
    buffer.add(make("broken", 0.0, parent=root, text="go", stop=StopReason.ACTOR_ERROR))
    assert list(buffer.groups()) == []


def test_filters_by_environment_and_split(buffer: ReplayBuffer, make: Make) -> None:
    for environment in ("household", "hotpotqa"):
        for split in Split:
            root = make(f"{environment}-{split}", task=Task(environment, f"task-{split}", split))
            buffer.add(root)
            buffer.add(make(f"{root.id}-retry", parent=root, text="go"))
    assert len(list(buffer.groups())) == 6
    (group,) = buffer.groups(["hotpotqa"], [Split.TEST])
    assert group.parent.id == "hotpotqa-test"
    assert {episode.id for episode in buffer.episodes("household", "train")} == {
        "household-train",
        "household-train-retry",
    }
    assert buffer.digest(["household"]) != buffer.digest()


def test_the_digest_names_content_whatever_its_order(tmp_path: Path, make: Make) -> None:
    episodes = tree(make)
    orders = [episodes, [episodes[0], episodes[3], episodes[2], episodes[1], episodes[4]]]
    digests = set()
    for number, order in enumerate(orders):
        with ReplayBuffer(f"sqlite:///{tmp_path / str(number)}.sqlite") as store:
            for episode in order:
                store.add(episode)
            digests.add(store.digest())
    assert len(digests) == 1


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    return int(count)


def test_equal_reflections_on_one_parent_share_a_row(tmp_path: Path, make: Make) -> None:
    root, path = make("root", 0.3), tmp_path / "shared.sqlite"
    with ReplayBuffer(f"sqlite:///{path}") as buffer:
        for episode in (root, make("one", 0.3, parent=root, text="go"), make("two", 0.6, parent=root, text="go")):
            buffer.add(episode)
    assert [rows(path, table) for table in ("episodes", "reflections", "tasks")] == [3, 1, 1]


def test_a_transaction_is_all_or_nothing(buffer: ReplayBuffer, make: Make) -> None:
    with pytest.raises(KeyboardInterrupt), buffer.transaction() as add:
        add(make("root", 0.3))
        raise KeyboardInterrupt
    assert buffer.count() == 0
    buffer.add(make("root", 0.3, task=Task("household", "task-1", Split.TEST)))  # the task was taken back as well


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("not a url", "not a database URL"),
        ("mysql://x/y", r"in SQLite .* or in PostgreSQL .*, not in mysql"),
        ("postgresql+psycopg2://x/y?schema=a", r"postgresql\+psycopg://host/database\), not in postgresql\+psycopg2"),
        ("postgresql+psycopg://me:secret@x/y?schema=a", r"//\*\*\*@x/y\?schema=a: take the password out of the URL"),
        ("postgresql://x/y?schema=a&sslpassword=secret", r"sslpassword=\*\*\*: take the password out of the URL"),
        ("postgresql://x/y", r"name the buffer's namespace .*\?schema=NAME"),
        ("postgresql://x/y?schema=pg_a", "'pg_a' is PostgreSQL's own"),
        ("postgresql://x/y?schema=" + "%C3%A4" * 32, "longer than 63 bytes"),
    ],
)
def test_urls_of_no_buffer(url: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retro.buffer.engine.find_spec", lambda name: True)
    with pytest.raises(ReplayBufferError, match=problem) as raised:
        ReplayBuffer(url)
    assert "secret" not in str(raised.value)


def test_a_missing_driver_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retro.buffer.engine.find_spec", lambda name: None)
    config = RunConfig.model_validate({"buffer": {"url": "postgresql+psycopg://host/db"}})
    with pytest.raises(ReplayBufferError, match=r"pip install 'retro\[postgres\]'$"):
        plan_run(config, ())


def test_a_missing_file_or_a_foreign_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReplayBufferError, match="no such file"):
        ReplayBuffer(f"sqlite:///{tmp_path / 'none.sqlite'}", create=False)
    foreign = tmp_path / "text.sqlite"
    foreign.write_text("no database " * 100)
    with pytest.raises(ReplayBufferError, match=r"text\.sqlite"):
        ReplayBuffer(f"sqlite:///{foreign}")


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("table", ["episodes", "songs"])
def test_a_database_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, table: str, create: bool) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute(f"create table {table} (title text)")
    before = foreign.read_bytes()
    with pytest.raises(ReplayBufferError, match=r"foreign\.sqlite: not a replay buffer"):
        ReplayBuffer(f"sqlite:///{foreign}", create=create)
    assert foreign.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign.sqlite"]


def test_an_empty_file_becomes_a_buffer_only_where_one_is_asked_for(tmp_path: Path) -> None:
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    with pytest.raises(ReplayBufferError, match="not a replay buffer"):
        ReplayBuffer(f"sqlite:///{empty}", create=False)
    assert empty.stat().st_size == 0
    ReplayBuffer(f"sqlite:///{empty}").close()
    ReplayBuffer(f"sqlite:///{empty}", create=False).close()


def test_a_buffer_opens_while_another_process_writes(tmp_path: Path, make: Make) -> None:
    url = f"sqlite:///{tmp_path / 'buffer.sqlite'}"
    with ReplayBuffer(url) as writer, writer.transaction() as add:
        add(make("root"))
        with ReplayBuffer(url) as reader:  # if it created anything, it would wait in vain for the writer's lock
            assert reader.count() == 0


def test_a_damaged_database_is_one_error(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "buffer.sqlite"
    with ReplayBuffer(f"sqlite:///{path}") as store:
        for number in range(200):
            store.add(make(f"root-{number}", task=Task("household", f"{number}", Split.TRAIN)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * (len(whole) - len(whole) // 2))
    with (
        pytest.raises(
            ReplayBufferError, match=r"buffer\.sqlite: .*; check that it is a replay buffer, that it is whole"
        ),
        ReplayBuffer(f"sqlite:///{path}", create=False) as store,
    ):
        list(store.episodes())


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("trajectory", '{"opening": "\\ud800", "steps": []}', "half of a surrogate pair"),
        (
            "trajectory",
            '{"opening": "", "steps": [{"action": "a", "observation": "", "reward": Infinity}]}',
            "Infinity",
        ),
        ("trajectory", '{"opening": ""}', "steps"),
        ("trajectory", "[" * 5000, "nested deeper"),
        ("info", '{"x": 1e999}', "not a finite number"),
        ("info", "{", "not JSON"),
        ("recalled", '{"entries": ["a"], "ids": []}', "each entry has its id"),
        ("stop", "tired", "'tired' is not a valid StopReason"),
    ],
)
def test_a_row_that_an_older_release_wrote_or_that_is_damaged_is_named(
    tmp_path: Path, make: Make, column: str, value: str, problem: str
) -> None:
    path = tmp_path / "buffer.sqlite"
    with ReplayBuffer(f"sqlite:///{path}") as store:
        root = make("good")
        store.add(root)
        store.add(make("bad", parent=root, text="go"))
    with sqlite3.connect(path) as connection:
        connection.execute(f"update episodes set {column} = ? where id = 'bad'", [value])
    with ReplayBuffer(f"sqlite:///{path}", create=False) as store:
        assert store.get("good") == root
        for read in (lambda: store.get("bad"), lambda: list(store.episodes()), lambda: list(store.groups())):
            with pytest.raises(ReplayBufferError, match=rf"^episode 'bad': its row .*{problem}.*; delete it") as raised:
                read()
            assert "\n" not in str(raised.value)


def test_an_in_memory_buffer(make: Make) -> None:
    with ReplayBuffer("sqlite://") as store:
        store.add(make("root"))
        assert store.count() == 1


WRITER = """
import sys
from retro.buffer import ReplayBuffer
sys.path.insert(0, sys.argv[2])
from buffer_episodes import make_episode
from retro.types import Split, Task
with ReplayBuffer(sys.argv[1]) as buffer:
    number = 0
    while True:
        root = make_episode(f"{sys.argv[3]}-{number}", task=Task("household", f"{number}", Split.TRAIN))
        buffer.add(root)
        buffer.add(make_episode(root.id + "-retry", 0.6, parent=root, text="x" * 20000))
        number += 1
"""


def test_killed_writers_leave_whole_episodes_only(tmp_path: Path, make: Make) -> None:
    """Two processes write at once, both are killed; what is there reads back whole and can be added again."""
    url = f"sqlite:///{tmp_path / 'buffer.sqlite'}"
    with ReplayBuffer(url) as buffer:
        arguments = [sys.executable, "-c", WRITER, url, str(Path(__file__).parent)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        writers = [subprocess.Popen([*arguments, name], env=environment, stderr=subprocess.PIPE) for name in ("a", "b")]
        while buffer.count() < 40 and all(writer.poll() is None for writer in writers):
            time.sleep(0.01)
        ended = [writer.returncode for writer in writers]
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        said = [writer.communicate()[1].decode() for writer in writers]
        assert ended == [None, None], said
    with ReplayBuffer(url, create=False) as buffer:
        episodes = list(buffer.episodes())
        assert len(episodes) >= 40
        reflected = sum(episode.reflection is not None for episode in episodes)
        assert rows(tmp_path / "buffer.sqlite", "reflections") == reflected
        digest = buffer.digest()
        for episode in episodes:
            buffer.add(episode)
        assert buffer.digest() == digest


def test_several_may_make_one_buffer_at_once(tmp_path: Path) -> None:
    """SQLite does not wait by itself while another connection switches to the write-ahead log."""
    for round in range(10):
        start = Barrier(6)

        def opened(_: int, url: str = f"sqlite:///{tmp_path / str(round)}.sqlite", start: Barrier = start) -> int:
            start.wait()
            with ReplayBuffer(url) as buffer:
                return buffer.count()

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(opened, range(6))) == [0] * 6
