"""The file of records: resumable after any kill, honest about bad lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_evaluation import chain, tasks

from retro.evaluation.records import EpisodeRecords, Record, RecordFileError, chains, read_records


def write(path: Path, records: list[Record]) -> None:
    with EpisodeRecords(path) as file:
        for record in records:
            file.add(record)


def test_records_come_back_equal(tmp_path: Path) -> None:
    records = [r for task in tasks(3) for r in chain("ppo-env-bon4", task, 0)]
    write(tmp_path / "episodes.jsonl", records)
    assert list(read_records(tmp_path / "episodes.jsonl")) == records


def test_a_torn_last_line_is_cut_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    first, second = (chain("sft", task, 0)[0] for task in tasks(2))
    write(path, [first, second])
    path.write_bytes(path.read_bytes()[:-40])
    with EpisodeRecords(path) as file:
        assert file.of("sft", "digest") == [first]
        file.add(second)
    assert list(read_records(path)) == [first, second]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, chain("sft", tasks(1)[0], 0)[:1])
    with path.open("a") as file:
        file.write('{"arm": 1}\n')
    with pytest.raises(RecordFileError, match="line 2: not an evaluation record"):
        list(read_records(path))


def test_stale_records_of_an_arm_are_dropped_and_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    record = chain("sft", tasks(1)[0], 0)[0]
    stale = Record("sft", "before", record.episode)
    other = Record("reflexion", "whatever", record.episode)
    write(path, [stale, record, other])
    with EpisodeRecords(path) as file:
        file.drop_stale({"sft": "digest"})
        file.add(Record("oracle", "x", record.episode))
        assert file.of("sft", "before") == []
    assert [r.arm for r in read_records(path)] == ["sft", "reflexion", "oracle"]
    assert not list(tmp_path.glob("*.part"))


def test_chains_are_in_the_order_of_trials() -> None:
    records = [r for task in tasks(4) for r in chain("retry-sampled", task, 0)]
    by_task = chains(records[::-1])
    assert {task: [r.episode.trial for r in of_task] for task, of_task in by_task.items()} == {
        task: list(range(len(of_task))) for task, of_task in by_task.items()
    }
