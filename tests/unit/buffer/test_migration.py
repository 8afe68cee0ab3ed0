"""A buffer of the release before: refused with the command that migrates it, which keeps what training reads.

``fixtures/buffer_v1.sql`` is a buffer of schema version 1, as SQL text. Commit 5eb4eed wrote it: a collection with the
quickstart's models (``retro collect configs/quickstart.yaml`` with 3 tasks, 6 attempts, groups of 2, a control each,
``actor.temperature=0.7``), four JSON lines (a root at trial 4 with ``info["memory"]``, two retries, a control), and the
Reflexion logs of ``test_reflexion_logs.py`` with a gap. ``buffer_v1_recalled.json`` is what that commit put into the
retrospective model's prompt about each failed episode: ``ReflectionWindow(3).recall`` of its memory.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retro.buffer import ReplayBuffer, ReplayBufferError
from retro.buffer.jsonl import export_jsonl, import_jsonl
from retro.buffer.migration import migrate
from retro.cli.app import app
from retro.types import Recalled

FIXTURES = Path(__file__).with_name("fixtures")
READ: dict[str, list[str]] = json.loads((FIXTURES / "buffer_v1_recalled.json").read_text(encoding="utf-8"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "buffer.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((FIXTURES / "buffer_v1.sql").read_text(encoding="utf-8"))
    return path


def rows(path: Path) -> list[tuple[object, ...]]:
    """Everything that version 1 knew of an episode, but what the migration rewrites."""
    columns = (
        'id, environment, task, trial, parent, reflection, "return", success, stop, seed, prompt_tokens, trajectory'
    )
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"select {columns} from episodes order by id").fetchall()


def test_an_old_buffer_is_refused_with_the_command_that_migrates_it(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(
        ReplayBufferError, match=r"schema version 1, .*retro buffer migrate sqlite:///.*buffer\.sqlite$"
    ):
        ReplayBuffer(f"sqlite:///{old}")
    assert old.read_bytes() == before


def test_training_reads_after_the_migration_what_it_read_before(old: Path) -> None:
    before = rows(old)
    assert migrate(f"sqlite:///{old}") == 50
    assert rows(old) == before
    with ReplayBuffer(f"sqlite:///{old}", create=False) as buffer:
        failed = {episode.id: list(episode.recalled.entries) for episode, _ in buffer.failures()}
        assert failed == READ
        assert max(len(path) for _, path in buffer.failures()) > 3, "the window left something out"
        root = buffer.get("mine-4")
    assert root is not None
    assert root.info == {"note": "from a notebook"}
    assert root.recalled.ids == ("reflection-1", "reflection-2", "reflection-3")


def test_each_retry_recalled_what_its_parent_did_and_its_own_reflection(old: Path) -> None:
    migrate(f"sqlite:///{old}", window=2)
    with ReplayBuffer(f"sqlite:///{old}", create=False) as buffer:
        episodes = {episode.id: episode for episode in buffer.episodes()}
    for episode in episodes.values():
        if episode.parent is not None:
            own = (episode.reflection.text,) if episode.reflection else ()
            assert episode.recalled.entries == (*episodes[episode.parent].recalled.entries, *own)[-2:]


def test_a_migrated_buffer_is_one_of_ours(old: Path, tmp_path: Path) -> None:
    """Its digests are those of its episodes as they are: the same ones, added anew, are the same content."""
    migrate(f"sqlite:///{old}")
    assert migrate(f"sqlite:///{old}") == 0
    with ReplayBuffer(f"sqlite:///{old}") as buffer, ReplayBuffer(f"sqlite:///{tmp_path / 'new.sqlite'}") as new:
        digest = buffer.digest()
        for episode in buffer.episodes():
            buffer.add(episode)
        export_jsonl(buffer, tmp_path / "episodes.jsonl")
        import_jsonl(new, tmp_path / "episodes.jsonl", window=1)
        assert buffer.digest() == new.digest() == digest


def test_lines_that_the_old_release_exported_say_the_same(old: Path, tmp_path: Path) -> None:
    """They have no ``recalled``, and the memory of a root in its ``info``."""
    with closing(sqlite3.connect(old)) as connection:
        memory = json.loads(connection.execute("select info from episodes where id = 'mine-4'").fetchone()[0])["memory"]
    migrate(f"sqlite:///{old}")
    with ReplayBuffer(f"sqlite:///{old}") as buffer:
        export_jsonl(buffer, tmp_path / "episodes.jsonl")
        digest = buffer.digest(["hotpotqa"])
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = [line for line in lines if line["id"].startswith("mine")]
    assert len(mine) == 4
    for line in mine:
        del line["recalled"]
    mine[0]["info"]["memory"] = memory
    path = tmp_path / "old.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    with ReplayBuffer("sqlite://") as new:
        import_jsonl(new, path)
        assert new.digest(["hotpotqa"]) == digest


def test_a_migration_is_all_or_nothing(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("update episodes set trajectory = '{' where id = 'mine-6'")
    before = old.read_bytes()
    with pytest.raises(ReplayBufferError, match="'mine-6'"):
        migrate(f"sqlite:///{old}")
    with pytest.raises(ReplayBufferError, match="schema version 1"):
        ReplayBuffer(f"sqlite:///{old}")
    assert old.read_bytes() == before


def test_other_versions_and_other_databases_are_refused(old: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("update schema_info set version = 3")
    for open_it in (lambda: migrate(f"sqlite:///{old}"), lambda: ReplayBuffer(f"sqlite:///{old}")):
        with pytest.raises(ReplayBufferError, match="a later retro wrote it"):
            open_it()
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(ReplayBufferError, match="not a replay buffer"):
        migrate(f"sqlite:///{tmp_path / 'empty.sqlite'}")


@pytest.mark.parametrize(("asked", "size"), [((), 1), (("--window", "2"), 2)])
def test_the_command_takes_the_window_of_the_run(old: Path, asked: tuple[str, ...], size: int) -> None:
    (old.parent / "config.yaml").write_text("name: old\nmemory: {kind: window, size: 1}\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["buffer", "migrate", str(old.parent), *asked])
    assert (done.exit_code, done.output) == (0, f"{old.parent}: 50 episodes brought up to date\n")
    with ReplayBuffer(f"sqlite:///{old}") as buffer:
        last = buffer.get("mine-6")
    assert last is not None
    assert last.recalled == Recalled.latest(
        [
            "Read the page.",
            "Search for the author first.",
            "Look at the year.",
            "Finish with one name.",
            "It was not Bob.",
            "Leave out the initial.",
        ],
        size,
    )
    assert "is up to date" in CliRunner().invoke(app, ["buffer", "migrate", str(old.parent)]).output
